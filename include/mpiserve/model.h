/* model: what a Hugging Face folder says: config.json, generation_config.json, safetensors.
 *
 * Everything in a folder is input: it is checked, and an error names the file, the field or the byte and what to do.
 * Fields that would change the maths and are not understood are refused by name. No weights are interpreted here: this room finds
 * tensors and reads their bytes. Life cycle: model_read_config -> model_open -> model_tensor / model_read -> model_close.
 * Thread rule: after model_open, model_tensor and model_read may be called from several threads. */
#ifndef MPISERVE_MODEL_H
#define MPISERVE_MODEL_H

#include "mpiserve/base.h"

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_OTHER }; /* of a stored tensor */
size_t dtype_bytes(enum dtype t);                             /* DTYPE_OTHER: 0 */
const char *dtype_name(enum dtype t);

enum { MODEL_MAX_EOS = 16, MODEL_MAX_LAYERS = 256 };
enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };

/* A row of the table of architectures. A new one is a row, and code only where the maths is new. */
struct arch {
    const char *model_type; /* config.json model_type */
    const char *class_name; /* architectures[0] */
    bool qkv_bias;          /* biases on q, k, v always (qwen2) */
    bool attention_bias;    /* config's attention_bias is honoured: q, k, v (and o_bias) */
    bool o_bias;            /* attention_bias covers o as well */
    bool mlp_bias;          /* config's mlp_bias is honoured */
    bool qk_norm;           /* RMSNorm per head on q and k before the rotation (qwen3) */
    bool window_all;        /* sliding_window on all layers when not null (mistral) */
    bool window_opt;        /* only with use_sliding_window, layers >= max_window_layers (qwen2, qwen3) */
    double eps_default;
    i32 head_dim_default;   /* 0: hidden / heads */
    i32 window_default;     /* sliding_window when the key is absent; 0: none */
    bool kv_heads_optional; /* absent num_key_value_heads = num_attention_heads */
};
const struct arch *model_arch(const char *model_type); /* NULL: unknown */

struct model_config {
    const struct arch *arch;
    char dir[PATH_LEN];
    u32 vocab, hidden, layers, heads, kv_heads, head_dim, ffn;
    u32 max_position; /* longest sequence */
    float eps;
    bool tied;                     /* head = embedding */
    bool q_bias, o_bias, mlp_bias; /* q_bias: on q, k and v */
    bool qk_norm;
    u32 window[MODEL_MAX_LAYERS]; /* tokens a layer sees, itself included; 0: all */
    struct {
        enum rope_kind kind;
        double theta, factor, low_freq_factor, high_freq_factor;
        u32 original_max_position;
    } rope;
    /* generation_config.json over config.json; has_*: the model suggests it as a request default */
    i32 eos[MODEL_MAX_EOS];
    u32 n_eos;
    i32 bos; /* -1: none */
    bool has_temperature, has_top_p, has_top_k, has_repetition_penalty;
    float temperature, top_p, repetition_penalty;
    i32 top_k;
};
/* Reads config.json and generation_config.json of a folder. ERR_UNSUPPORTED for architectures and fields not offered. */
int model_read_config(const char *dir, struct model_config *out, struct error *err);

struct tensor { /* where a tensor's bytes are */
    enum dtype dtype;
    char stored[16]; /* the type as the file spells it: "BF16" */
    u32 n_dims;
    u64 dims[4]; /* the first four */
    u32 file;
    u64 offset, bytes; /* in that file */
};
struct model_files;
/* Opens model.safetensors, or model.safetensors.index.json and its shards; reads and checks all headers (overlaps, holes, sizes,
 * duplicate names, truncated files). */
struct model_files *model_open(const char *dir, struct error *err);
void model_close(struct model_files *f);
const struct tensor *model_tensor(const struct model_files *f, const char *name); /* NULL: absent */
size_t model_tensor_count(const struct model_files *f);
const char *model_tensor_name(const struct model_files *f, size_t i);
const struct tensor *model_tensor_at(const struct model_files *f, size_t i);
/* Bytes [off, off + len) of a tensor with large reads (never page faults); a file that shrank meanwhile is ERR_IO naming it. */
int model_read(const struct model_files *f, const struct tensor *t, u64 off, void *to, u64 len,
               struct error *err);
/* n pieces of len bytes, the first at off, their begins stride apart, one behind the other in `to`: a part of each of n rows. Storage
 * is asked for what lies between as well, in large reads: other engines of the node need it, and pieces are small. */
int model_read_rows(const struct model_files *f, const struct tensor *t, u64 off, u64 stride, void *to,
                    u64 len, u32 n, struct error *err);
/* Names, shapes and dtypes of all tensors, some bytes of some of them, and the contents of config.json: equal on all ranks of a job or the ranks are refused. */
u64 model_fingerprint(const struct model_config *c, const struct model_files *f);

#endif
