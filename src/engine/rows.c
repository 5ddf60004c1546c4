#include "engine/rows.h"

#include <stdlib.h>
#include <string.h>

/* A row as the step's earlier parts leave it. Valid only with the current stamp; else the row's own values hold. */
struct row_shadow {
    u64 stamp;
    bool used, dead, named, fresh; /* named: a row of this step; fresh: it began with this step */
    bool pooled;
    u32 gen, n_tok, max_len, n_blocks, next_pos;
};

int rows_init(struct rows *t, const struct rows_limits *limits, struct error *err)
{
    *t = (struct rows){.limits = *limits};
    if (!limits->max_rows || !limits->block_size || !limits->max_model_len)
        return error_set(err, ERR_INPUT, "rows", "%u rows of %u tokens in blocks of %u", limits->max_rows,
                         limits->max_model_len, limits->block_size);
    t->max_blocks = (limits->max_model_len - 1) / limits->block_size + 1;
    t->row = calloc(limits->max_rows, sizeof(*t->row));
    t->shadow = calloc(limits->max_rows, sizeof(*t->shadow));
    t->tables = calloc((size_t)limits->max_rows * t->max_blocks, sizeof(*t->tables));
    t->vectors = calloc((size_t)limits->max_rows * MAX_OF(limits->hidden, 1u), sizeof(*t->vectors));
    if (!t->row || !t->shadow || !t->tables || !t->vectors) {
        rows_release(t);
        return error_set(err, ERR_MEMORY, "rows", "no memory for %u rows of %u blocks", limits->max_rows,
                         t->max_blocks);
    }
    for (u32 i = 0; i < limits->max_rows; i++) {
        t->row[i].blocks = t->tables + (size_t)i * t->max_blocks;
        t->row[i].vector = t->vectors + (size_t)i * limits->hidden;
    }
    return 0;
}

void rows_release(struct rows *t)
{
    for (u32 i = 0; t->row && i < t->limits.max_rows; i++) {
        sampler_row_release(&t->row[i].sampler);
        free(t->row[i].history);
    }
    free(t->row);
    free(t->shadow);
    free(t->tables);
    free(t->vectors);
    *t = (struct rows){0};
}

/* ---- checking ---- */

static int refuse(struct error *err, u32 row, const char *what, u64 number)
{
    return error_set(err, ERR_PEER, "step", "row %u: %s (%llu)", row, what, (unsigned long long)number);
}

static struct row_shadow *shadow_of(struct rows *t, u32 row)
{
    struct row_shadow *s = &t->shadow[row];
    const struct seq_row *r = &t->row[row];
    if (s->stamp != t->stamp)
        *s = (struct row_shadow){.stamp = t->stamp,
                                 .used = r->used,
                                 .dead = r->dead,
                                 .pooled = r->pooled,
                                 .gen = r->gen,
                                 .n_tok = r->n_tok,
                                 .max_len = r->max_len,
                                 .n_blocks = r->n_blocks,
                                 .next_pos = r->next_pos};
    return s;
}

static int check_free(struct rows *t, const struct seq_free *f, struct error *err)
{
    if (f->row >= t->limits.max_rows) return refuse(err, f->row, "seq_free: no such row", f->row);
    struct row_shadow *s = shadow_of(t, f->row);
    if (!s->used || s->gen != f->row_gen)
        return refuse(err, f->row, "seq_free of another row_gen", f->row_gen);
    s->used = false;
    return 0;
}

static bool ids_ok(const struct step_view *v, struct span span, u32 vocab)
{
    const i32 *ids = step_at(v, span);
    for (u32 i = 0; i < span.len; i++)
        if (ids[i] < 0 || (u32)ids[i] >= vocab) return false;
    return true;
}

static bool bias_ok(const struct step_view *v, struct span span, u32 vocab)
{
    const struct token_bias *bias = step_at(v, span);
    for (u32 i = 0; i < span.len; i++)
        if (bias[i].id < 0 || (u32)bias[i].id >= vocab) return false;
    return true;
}

static int check_new(struct rows *t, const struct step_view *v, const struct seq_new *n, struct error *err)
{
    const struct rows_limits *l = &t->limits;
    if (n->row >= l->max_rows) return refuse(err, n->row, "seq_new: no such row", n->row);
    struct row_shadow *s = shadow_of(t, n->row);
    if (s->used) return refuse(err, n->row, "seq_new: the row is in use, row_gen", s->gen);
    if (n->max_len > l->max_model_len) return refuse(err, n->row, "seq_new: max_len", n->max_len);
    if (n->pooling != l->pooling)
        return refuse(err, n->row, "seq_new: pooling that is not the model's", n->pooling);
    if (n->second && l->types < 2)
        return refuse(err, n->row, "seq_new: a second text, and the model has one type of tokens", n->second);
    if (n->adapter > l->adapters) return refuse(err, n->row, "seq_new: no such adapter", n->adapter);
    if (n->sampling.n_logprobs > (i32)l->max_logprobs)
        return refuse(err, n->row, "seq_new: n_logprobs", (u32)n->sampling.n_logprobs);
    if (!ids_ok(v, n->tokens, l->vocab) || !ids_ok(v, n->allowed, l->vocab) ||
        !ids_ok(v, n->eos_ids, l->vocab) || !ids_ok(v, n->stop_ids, l->vocab) ||
        !bias_ok(v, n->bias, l->vocab) || !bad_words_ok(step_at(v, n->bad_words), n->bad_words.len, l->vocab))
        return refuse(err, n->row, "seq_new: a token id is not in the vocabulary", l->vocab);
    *s = (struct row_shadow){.stamp = t->stamp,
                             .used = true,
                             .fresh = true,
                             .pooled = n->pooling != POOLING_NONE,
                             .gen = n->row_gen,
                             .n_tok = n->n_tok,
                             .max_len = n->max_len};
    return 0;
}

static int check_blocks(struct rows *t, const struct step_view *v, const struct row *r, u32 have,
                        struct error *err)
{
    const struct rows_limits *l = &t->limits;
    const u32 *blocks = step_at(v, r->block_delta[0]);
    u32 more = r->block_delta[0].len, need = (r->pos + r->n_tok - 1) / l->block_size + 1;
    if (more > t->max_blocks - have) return refuse(err, r->row, "more blocks than max_model_len needs", more);
    if (need > have + more)
        return refuse(err, r->row, "positions without a block, blocks missing", need - have - more);
    for (u32 i = 0; i < more; i++)
        if (blocks[i] < 1 || blocks[i] >= l->n_blocks) return refuse(err, r->row, "no such block", blocks[i]);
    for (int g = 1; g < STEP_KV_GROUPS; g++)
        if (r->block_delta[g].len) return refuse(err, r->row, "no such KV group", (u64)g);
    return 0;
}

/* Tokens that travel with the step go on where the history ends; those that it has already must be the same. */
static int check_tokens(struct rows *t, const struct step_view *v, const struct row *r, struct row_shadow *s,
                        struct error *err)
{
    const struct seq_row *have = &t->row[r->row];
    struct span span = {r->tok_off, r->n_tok};
    const i32 *tokens = step_at(v, span);
    if (r->src == SRC_HISTORY) return 0;
    if (s->fresh || r->pos > s->n_tok || r->pos + r->n_tok < s->n_tok)
        return refuse(err, r->row, "tokens that do not go on from its history of", s->n_tok);
    if (!ids_ok(v, span, t->limits.vocab))
        return refuse(err, r->row, "a token id is not in the vocabulary", t->limits.vocab);
    for (u32 i = 0; i < r->n_tok && r->pos + i < s->n_tok; i++)
        if (have->history[r->pos + i] != tokens[i])
            return refuse(err, r->row, "another token than its history has at position", r->pos + i);
    s->n_tok = r->pos + r->n_tok;
    return 0;
}

static int check_row(struct rows *t, const struct step_view *v, const struct row *r, struct error *err)
{
    if (r->row >= t->limits.max_rows) return refuse(err, r->row, "no such row", r->row);
    struct row_shadow *s = shadow_of(t, r->row);
    if (!s->used || s->gen != r->row_gen)
        return refuse(err, r->row, "not in use, or another row_gen", r->row_gen);
    if (s->named) return refuse(err, r->row, "named twice in a step", r->row);
    s->named = true;
    if (r->n_draft) return refuse(err, r->row, "drafts are not offered, n_draft", r->n_draft);
    if (r->mask_slot != -1)
        return refuse(err, r->row, "grammar masks are not offered, slot", (u32)r->mask_slot);
    u32 end = r->pos + r->n_tok; /* the view has checked that it fits */
    if (end > s->max_len) return refuse(err, r->row, "positions beyond max_len", end);
    int rc = check_tokens(t, v, r, s, err);
    if (rc < 0) return rc;
    if (!s->dead && end > s->n_tok) return refuse(err, r->row, "positions beyond the history", end);
    if (!s->dead && r->want != WANT_NOTHING && end != s->n_tok)
        return refuse(err, r->row, "a token or vector is wanted in the middle of the history", end);
    if (r->want == (s->pooled ? WANT_SAMPLE : WANT_HIDDEN))
        return refuse(err, r->row, "such a result is not offered of this sequence, want", r->want);
    if (t->limits.whole && (r->pos || end != s->n_tok))
        return refuse(err, r->row, "a part of the sequence, and the model needs all of it; ends at", end);
    if (s->pooled && t->limits.pooling != POOLING_LAST && !s->next_pos && r->pos)
        return refuse(err, r->row, "the vector needs the first position, too; begins at", r->pos);
    /* what lies before may be shared: nobody writes there */
    if (s->next_pos ? r->pos != s->next_pos : r->pos % t->limits.block_size)
        return refuse(err, r->row, s->next_pos ? "does not follow its last row" : "begins inside a block",
                      r->pos);
    return check_blocks(t, v, r, s->n_blocks, err);
}

static int check_op(const struct rows *t, const struct block_op *op, struct error *err)
{
    u32 n = t->limits.n_blocks;
    if ((op->op != BLOCK_COPY && op->op != BLOCK_ZERO) || op->group)
        return error_set(err, ERR_PEER, "step", "block operation %u on group %u is not offered", op->op,
                         op->group);
    if (op->src >= n || op->dst >= n || op->dst < 1)
        return error_set(err, ERR_PEER, "step", "block operation from %u to %u of %u", op->src, op->dst, n);
    return 0;
}

int rows_check(struct rows *t, const struct step_view *v, struct error *err)
{
    const struct step *h = v->head;
    int rc = 0;
    t->stamp++;
    if (h->n_tok > t->limits.max_step_tokens || h->n_rows > t->limits.max_rows)
        return error_set(err, ERR_PEER, "step", "%u tokens, %u rows: the limits are %u and %u", h->n_tok,
                         h->n_rows, t->limits.max_step_tokens, t->limits.max_rows);
    for (u32 i = 0; i < h->n_free && rc == 0; i++) rc = check_free(t, &v->free[i], err);
    for (u32 i = 0; i < h->n_new && rc == 0; i++) rc = check_new(t, v, &v->new[i], err);
    for (u32 i = 0; i < h->n_ops && rc == 0; i++) rc = check_op(t, &v->ops[i], err);
    for (u32 i = 0; i < h->n_rows && rc == 0; i++) rc = check_row(t, v, &v->rows[i], err);
    return rc;
}

/* ---- changing ---- */

static int start_row(struct rows *t, const struct step_view *v, const struct seq_new *n, struct error *err)
{
    struct seq_row *r = &t->row[n->row];
    const i32 *tokens = step_at(v, n->tokens);
    if (r->room < n->max_len) { /* kept for the row's next sequences */
        i32 *history = realloc(r->history, n->max_len * sizeof(*history));
        if (!history) return error_set(err, ERR_MEMORY, "rows", "no memory for %u tokens", n->max_len);
        r->history = history;
        r->room = n->max_len;
    }
    memcpy(r->history, tokens, n->n_tok * sizeof(*tokens));
    r->used = true;
    r->dead = 0;
    r->gen = n->row_gen;
    r->max_len = n->max_len;
    r->n_tok = n->n_tok;
    r->n_blocks = r->next_pos = 0;
    r->second = n->second;
    r->adapter = n->adapter;
    r->pooled = n->pooling != POOLING_NONE;
    memset(r->vector, 0, t->limits.hidden * sizeof(*r->vector));
    const struct sampler_spec spec = {.sampling = &n->sampling,
                                      .history = r->history,
                                      .prompt_len = n->prompt_len,
                                      .n = n->n_tok,
                                      .bias = step_at(v, n->bias),
                                      .allowed = step_at(v, n->allowed),
                                      .bad_words = step_at(v, n->bad_words),
                                      .eos_ids = step_at(v, n->eos_ids),
                                      .stop_ids = step_at(v, n->stop_ids),
                                      .n_bias = n->bias.len,
                                      .n_allowed = n->allowed.len,
                                      .n_bad_words = n->bad_words.len,
                                      .n_eos_ids = n->eos_ids.len,
                                      .n_stop_ids = n->stop_ids.len};
    sampler_row_release(&r->sampler);
    return sampler_row_init(&r->sampler, &spec, t->limits.vocab, err);
}

/* Those that it has not yet. */
static void append_tokens(struct seq_row *r, const struct step_view *v, const struct row *plan)
{
    const i32 *tokens = step_at(v, (struct span){plan->tok_off, plan->n_tok});
    for (u32 i = r->n_tok - plan->pos; i < plan->n_tok; i++) rows_append(r, tokens[i]);
}

int rows_apply(struct rows *t, const struct step_view *v, struct error *err)
{
    for (u32 i = 0; i < v->head->n_free; i++) {
        struct seq_row *r = &t->row[v->free[i].row];
        sampler_row_release(&r->sampler);
        r->used = false;
    }
    for (u32 i = 0; i < v->head->n_new; i++) {
        int rc = start_row(t, v, &v->new[i], err);
        if (rc < 0) return rc;
    }
    for (u32 i = 0; i < v->head->n_rows; i++) {
        struct seq_row *r = &t->row[v->rows[i].row];
        struct span delta = v->rows[i].block_delta[0];
        if (v->rows[i].src == SRC_RING) append_tokens(r, v, &v->rows[i]);
        memcpy(r->blocks + r->n_blocks, step_at(v, delta), delta.len * sizeof(u32));
        r->n_blocks += delta.len;
        r->next_pos = v->rows[i].pos + v->rows[i].n_tok;
    }
    return 0;
}

void rows_append(struct seq_row *r, i32 token)
{
    if (r->n_tok == r->max_len) return;
    r->history[r->n_tok++] = token;
    sampler_row_push(&r->sampler, token);
}
