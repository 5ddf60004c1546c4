/* What the reference libraries say of models that make vectors or scores (tests/reference/embeddings): texts as token ids, and the vectors
 * in every pooling, or the score. */
#ifndef MPISERVE_TESTS_VECTOR_REFERENCE_H
#define MPISERVE_TESTS_VECTOR_REFERENCE_H

#include "mpiserve/json.h"
#include "runner.h"

#include <math.h>

enum { MOST_TEXTS = 8, LONGEST = 320, WIDEST = 64 };
static const struct pool_case {
    enum pooling pooling;
    const char *key;
} POOLS[] = {{POOLING_LAST, "lasttoken"}, {POOLING_MEAN, "mean"}, {POOLING_CLS, "cls"}};

struct text {
    i32 ids[LONGEST];
    u32 n, second;
    float wanted[COUNT_OF(POOLS)][WIDEST]; /* a scorer's: [0][0] */
};
struct vector_reference {
    char dir[PATH_LEN];
    struct text texts[MOST_TEXTS];
    u32 n_texts, width; /* numbers of a vector */
    bool scores;
    float tolerance; /* at f32 */
};

static inline void text_read(struct text *t, const struct json *from, const struct vector_reference *ref,
                             i32 end)
{
    const struct json *ids = json_get(from, "ids");
    u32 n = (u32)json_len(ids);
    *t = (struct text){.n = n + (end >= 0), .second = (u32)json_int(json_get(from, "second"), 0)};
    assert_in_range(t->n, 2, LONGEST);
    for (u32 i = 0; i < n; i++) t->ids[i] = (i32)json_int(json_item(ids, i), -1);
    if (end >= 0) t->ids[n] = end;
    if (ref->scores) t->wanted[0][0] = (float)json_real(json_get(from, "logit"), NAN);
    for (size_t p = 0; p < COUNT_OF(POOLS) && !ref->scores; p++)
        for (u32 i = 0; i < ref->width; i++)
            t->wanted[p][i] = (float)json_real(json_item(json_get(from, POOLS[p].key), i), NAN);
}

static inline void vector_reference_read(struct vector_reference *ref, const char *name)
{
    struct error err = {0};
    struct model_config config;
    char path[PATH_LEN];
    const char *tests = data_dir("MPISERVE_TESTS", "tests");
    snprintf(ref->dir, sizeof ref->dir, "%s/reference/embeddings/%s", tests, name);
    runner_need(!model_read_config(ref->dir, &config, &err), &err);
    ref->width = model_vector(&config);
    ref->scores = config.pooling.scores;
    assert_in_range(ref->width, 1, WIDEST);
    snprintf(path, sizeof path, "%s/reference/embeddings/%s.json", tests,
             config.arch->encoder ? "encoders" : "vectors");
    struct json *root = json_read_file(path, 1 << 24, &err);
    runner_need(root != NULL, &err);
    const struct json *model = config.arch->encoder ? json_get(json_get(root, "models"), name) : root,
                      *list = json_get(model, ref->scores ? "pairs" : "texts");
    ref->tolerance = (float)json_real(json_get(root, "tolerance"), 0);
    assert_true(ref->tolerance > 0 && ref->tolerance <= 1e-3f);
    ref->n_texts = (u32)json_len(list);
    assert_in_range(ref->n_texts, 4, MOST_TEXTS);
    for (u32 i = 0; i < ref->n_texts; i++)
        text_read(&ref->texts[i], json_item(list, i), ref, (i32)json_int(json_get(root, "end"), -1));
    json_drop(root);
}

/* vector: of the text in that pooling. */
static inline void assert_vector(const struct vector_reference *ref, u32 text, size_t pool,
                                 const float *vector, float slack)
{
    const struct text *t = &ref->texts[text];
    for (u32 i = 0; i < ref->width; i++) {
        float wanted = ref->scores ? t->wanted[0][0] : t->wanted[pool][i];
        if (!(fabsf(vector[i] - wanted) <= slack))
            fail_msg("%s, text %u, %s, number %u: %g, wanted %g", ref->dir, text, POOLS[pool].key, i,
                     (double)vector[i], (double)wanted);
    }
}

/* All of a text in one call. */
static inline struct fwd_seq text_whole(const struct runner *r, u32 blocks, const struct text *t,
                                        enum pooling pooling, float *sum)
{
    struct fwd_seq q = runner_seq(r, blocks, t->ids, 0, t->n);
    q.want_logits = false;
    q.second = t->second;
    q.hidden.first = pooling == POOLING_LAST ? t->n - 1 : 0;
    q.hidden.n = pooling == POOLING_MEAN ? t->n : 1;
    q.hidden.sum = sum;
    return q;
}

#endif
