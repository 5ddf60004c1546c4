/* The answer of /v1/embeddings: vectors as numbers or as base64 of their little-endian f32. */
#include "ingress/call.h"

#include <math.h>

static const double LEAST_LENGTH = 1e-12; /* a vector of zeros stays one */

/* The first `dimensions` numbers, divided by their length where the model wants that: what a cut leaves is normalised anew. */
static u32 finish_vector(const struct call *c, float *vector, u32 n)
{
    double sum = 0;
    if (c->p.dimensions != PARAM_NONE) n = (u32)c->p.dimensions;
    if (!c->in->spec.model->pooling.normalize) return n;
    for (u32 i = 0; i < n; i++) sum += (double)vector[i] * (double)vector[i];
    double length = MAX_OF(sqrt(sum), LEAST_LENGTH);
    for (u32 i = 0; i < n; i++) vector[i] = (float)((double)vector[i] / length);
    return n;
}

static void add_numbers(const float *vector, u32 n, struct buf *to)
{
    buf_char(to, '[');
    for (u32 i = 0; i < n; i++) {
        if (i) buf_char(to, ',');
        answer_float(to, vector[i]);
    }
    buf_char(to, ']');
}

void answer_base64(const void *from, size_t len, struct buf *to)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const u8 *in = from;
    buf_reserve(to, (len + 2) / 3 * 4);
    for (size_t i = 0; i < len; i += 3) {
        u32 n = MIN_OF(len - i, (size_t)3), bits = (u32)in[i] << 16;
        if (n > 1) bits |= (u32)in[i + 1] << 8;
        if (n > 2) bits |= in[i + 2];
        char four[4] = {digits[bits >> 18], digits[bits >> 12 & 63], n > 1 ? digits[bits >> 6 & 63] : '=',
                        n > 2 ? digits[bits & 63] : '='};
        buf_add(to, four, sizeof(four));
    }
}

static void add_vector(const struct call *c, u32 index, struct buf *to)
{
    float *vector = (float *)c->choices[index].vector.data;
    u32 n = finish_vector(c, vector, (u32)(c->choices[index].vector.len / sizeof(*vector)));
    buf_printf(to, "{\"object\":\"embedding\",\"index\":%u,\"embedding\":", index);
    if (c->p.base64) {
        buf_char(to, '"');
        answer_base64(vector, n * sizeof(*vector), to);
        buf_char(to, '"');
    } else {
        add_numbers(vector, n, to);
    }
    buf_char(to, '}');
}

void answer_vectors(struct call *c, struct buf *to)
{
    struct json_out o;
    buf_text(to, "{\"object\":\"list\",\"data\":[");
    for (u32 i = 0; i < c->n_choices; i++) {
        if (i) buf_char(to, ',');
        add_vector(c, i, to);
    }
    buf_text(to, "],\"model\":");
    json_out_init(&o, to);
    json_out_str(&o, call_model(c));
    buf_printf(to, ",\"usage\":{\"prompt_tokens\":%llu,\"total_tokens\":%llu}}",
               (unsigned long long)c->n_prompt_tokens, (unsigned long long)c->n_prompt_tokens);
}
