/* Rows of the stream that become vectors, or scores: which of them a chunk has, and how they join their sums. */
#include "engine/forward_inner.h"

void forward_add_vector(struct forward *f, const struct fwd_seq *q, u32 row, u32 i)
{
    bool first = i == q->hidden.first;
    struct pooling_run *run = f->vectors.n_runs ? &f->lists.runs[f->vectors.n_runs - 1] : NULL;
    if (i - q->hidden.first >= q->hidden.n) return;
    if (!run || run->sum != q->hidden.sum) {
        run = &f->lists.runs[f->vectors.n_runs++];
        *run = (struct pooling_run){q->hidden.sum, f->vectors.n, 0, first && q->hidden.begins};
    }
    f->lists.vectors[f->vectors.n++] = row;
    run->n++;
}

/* The wanted rows, through the final norm where the model has one. */
static void take_rows(struct forward *f, struct share s)
{
    const struct model_config *c = f->spec.config;
    const float *norm = f->spec.weights->norm;
    if (norm)
        f->spec.ops->norm(&(struct norm_args){.x = f->x,
                                              .w = norm,
                                              .list = f->seen.vectors,
                                              .eps = c->eps,
                                              .y = f->vectors.rows,
                                              .y_dtype = DTYPE_F32,
                                              .rows = f->vectors.n,
                                              .n = c->hidden,
                                              .ld_x = c->hidden,
                                              .ld_y = c->hidden},
                          s);
    else
        f->spec.ops->gather(&(struct gather_args){.x = f->x,
                                                  .y = f->vectors.rows,
                                                  .dtype = DTYPE_F32,
                                                  .order = f->seen.vectors,
                                                  .pairs = f->vectors.n,
                                                  .per_token = 1,
                                                  .n = c->hidden,
                                                  .ld_x = c->hidden,
                                                  .ld_y = c->hidden},
                            s);
    forward_wait(f, s);
}

/* A classifier's head: a product, tanh, and one more product of one output. */
static void run_scores(struct forward *f, struct share s)
{
    const struct weights *w = f->spec.weights;
    u32 hidden = f->spec.config->hidden, n = f->vectors.n;
    forward_linear(f, &w->score_dense, w->score_dense_bias,
                   (struct rows_in){f->vectors.rows, DTYPE_F32, hidden},
                   (struct rows_out){f->vectors.dense, hidden, n, false}, s);
    f->spec.ops->cap(
        &(struct cap_args){.x = f->vectors.dense, .cap = 1, .rows = n, .n = hidden, .ld = hidden}, s);
    forward_wait(f, s);
    forward_linear(f, &w->score_out, w->score_out_bias, (struct rows_in){f->vectors.dense, DTYPE_F32, hidden},
                   (struct rows_out){f->vectors.scores, 1, n, false}, s);
}

void forward_vectors(struct forward *f, struct share s)
{
    const struct model_config *c = f->spec.config;
    u32 width = model_vector(c);
    take_rows(f, s);
    if (c->pooling.scores) run_scores(f, s);
    f->spec.ops->pooling(&(struct pooling_args){.x = c->pooling.scores ? f->vectors.scores : f->vectors.rows,
                                                .runs = f->seen.runs,
                                                .n_runs = f->vectors.n_runs,
                                                .n = width,
                                                .ld_x = width},
                         s);
    forward_wait(f, s);
}
