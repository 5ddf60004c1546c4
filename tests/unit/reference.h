/* The reference checkpoints (tests/reference/models) and what they say: prompts, logits, greedy continuations. */
#ifndef MPISERVE_TESTS_REFERENCE_H
#define MPISERVE_TESTS_REFERENCE_H

#include "mpiserve/json.h"
#include "runner.h"

#include <math.h>

enum { PROMPTS = 4, STEPS = 24, LONGEST = 128 };

struct prompt {
    i32 ids[LONGEST], greedy[STEPS];
    u32 n;
    double greedy_logprobs[STEPS];
};
struct reference {
    char dir[PATH_LEN];
    struct prompt prompts[PROMPTS];
    struct buf data; /* reference.safetensors */
    struct json *header;
    size_t start;
};

static inline void read_prompt(const struct json *from, struct prompt *p)
{
    const struct json *ids = json_get(from, "ids"), *greedy = json_get(from, "greedy");
    p->n = (u32)json_len(ids);
    assert_true(p->n + STEPS <= LONGEST);
    for (u32 i = 0; i < p->n; i++) p->ids[i] = (i32)json_int(json_item(ids, i), -1);
    for (u32 i = 0; i < STEPS; i++) {
        p->greedy[i] = (i32)json_int(json_item(json_get(greedy, "ids"), i), -1);
        p->greedy_logprobs[i] = json_real(json_item(json_get(greedy, "logprobs"), i), NAN);
    }
}

static inline void reference_read(struct reference *ref, const char *name)
{
    struct error err = {0};
    char path[PATH_LEN + 32];
    u64 n;
    memset(ref, 0, sizeof *ref);
    snprintf(ref->dir, sizeof ref->dir, "%s/reference/models/%s", data_dir("MPISERVE_TESTS", "tests"), name);
    snprintf(path, sizeof path, "%s/reference.json", ref->dir);
    struct json *root = json_read_file(path, 1 << 24, &err);
    runner_need(root != NULL, &err);
    for (u32 i = 0; i < PROMPTS; i++) read_prompt(json_item(json_get(root, "prompts"), i), &ref->prompts[i]);
    json_drop(root);
    snprintf(path, sizeof path, "%s/reference.safetensors", ref->dir);
    runner_need(!file_read(path, 1 << 24, &ref->data, &err), &err);
    memcpy(&n, ref->data.data, 8);
    ref->header = json_read(ref->data.data + 8, n, &err);
    runner_need(ref->header != NULL, &err);
    ref->start = 8 + n;
}

static inline void reference_release(struct reference *ref)
{
    json_drop(ref->header);
    buf_release(&ref->data);
}

static inline struct model_config reference_config(const struct reference *ref)
{
    struct model_config c;
    struct error err = {0};
    runner_need(!model_read_config(ref->dir, &c, &err), &err);
    return c;
}

/* What the reference holds under "name.i", count numbers. */
static inline const float *stored(const struct reference *ref, const char *name, u32 i, size_t count)
{
    char key[64];
    snprintf(key, sizeof key, "%s.%u", name, i);
    const struct json *range = json_get(json_get(ref->header, key), "data_offsets");
    i64 from = json_int(json_item(range, 0), -1), to = json_int(json_item(range, 1), -1);
    assert_true(from >= 0 && (size_t)(to - from) == count * 4);
    return (const float *)(const void *)(ref->data.data + ref->start + from);
}

static inline double logprob(const float *logits, u32 vocab, i32 id)
{
    double sum = 0, top = logits[best_token(logits, vocab)];
    for (u32 i = 0; i < vocab; i++) sum += exp(logits[i] - top);
    return logits[id] - top - log(sum);
}

#endif
