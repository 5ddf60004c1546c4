/* model: what a Hugging Face folder says: config.json, generation_config.json, safetensors.
 *
 * Everything in a folder is input: it is checked, and an error names the file, the field or the byte and what to do.
 * Fields that would change the maths and are not understood are refused by name. No weights are interpreted here: this room finds
 * tensors and reads their bytes. Life cycle: model_read_config -> model_open -> model_tensor / model_read -> model_close.
 * Thread rule: after model_open, model_tensor and model_read may be called from several threads. */
#ifndef MPISERVE_MODEL_H
#define MPISERVE_MODEL_H

#include "mpiserve/base.h"
#include "mpiserve/request.h" /* enum pooling */

/* Of a stored tensor, or of weights in memory: the last three before OTHER are only there. */
enum dtype {
    DTYPE_F32,
    DTYPE_BF16,
    DTYPE_F16,
    DTYPE_F8, /* E4M3 */
    DTYPE_I8,
    DTYPE_I4,
    DTYPE_F4, /* E2M1 */
    DTYPE_OTHER
};
size_t dtype_bytes(enum dtype t); /* DTYPE_OTHER: 0 */
const char *dtype_name(enum dtype t);

enum {
    MODEL_MAX_EOS = 16,
    MODEL_MAX_LAYERS = 256,
    MODEL_MAX_HEAD = 1024,
    MODEL_MAX_ADAPTERS = 32,
    MODEL_MAX_RANK = 1024
};

/* ---- architectures. A row of the table; a new one is a row, and code only where the maths is new. */
enum window_rule { /* which layers see sliding_window tokens only; "layer_types" says otherwise where it is given */
                   WINDOW_NEVER,
                   WINDOW_ALL,        /* if sliding_window is not null */
                   WINDOW_ASKED_FROM, /* with use_sliding_window: layers >= max_window_layers */
                   WINDOW_ASKED_EVEN, /* with use_sliding_window: even layers below max_window_layers */
                   WINDOW_ASKED_ALL,  /* with use_sliding_window */
                   WINDOW_EVEN,
                   WINDOW_PATTERN, /* all but every sliding_window_pattern-th */
};
enum norms {               /* N: RMSNorm */
             NORMS_PRE,    /* x += F(N(x)) */
             NORMS_POST,   /* x += N(F(x)) */
             NORMS_AROUND, /* x += N(F(N(x))) */
             NORMS_SUM     /* x = N(x + F(x)), N: LayerNorm */
};
enum qk_norm { QK_NORM_NONE, QK_NORM_HEAD /* of each head */, QK_NORM_WHOLE /* of all heads together */ };
enum activation {
    ACT_SILU,      /* silu(gate) up */
    ACT_GELU_TANH, /* gelu, the tanh form, of gate, times up */
    ACT_CLAMPED,   /* gpt_oss: (up + 1) gate sigmoid(alpha gate), gate <= limit, |up| <= limit */
    ACT_GELU       /* x (1 + erf(x / sqrt 2)) / 2; of one input, there is no gate */
};
enum moe_kind { MOE_NONE, MOE_MIXTRAL, MOE_QWEN2, MOE_QWEN3, MOE_DEEPSEEK2, MOE_DEEPSEEK3, MOE_GPT_OSS };
struct arch {
    const char *model_type; /* config.json model_type */
    const char *class_name; /* architectures[0]; of an encoder: of the bare model, XModel */
    const char *keys;       /* of config.json that are understood here beside the common ones; " a b " */
    bool qkv_bias;          /* biases on q, k, v always (qwen2) */
    bool attention_bias;    /* config's attention_bias is honoured: q, k, v (and o_bias) */
    bool o_bias;            /* attention_bias covers o as well */
    bool bias_default;      /* attention_bias when the key is absent */
    bool mlp_bias;          /* config's mlp_bias is honoured */
    bool plus_one;          /* norms multiply by 1 + weight, the embedding by sqrt(hidden) (gemma) */
    bool fused;             /* qkv_proj and gate_up_proj in one tensor each (phi3) */
    bool mla;               /* multi-head latent attention (deepseek) */
    bool sinks;             /* a learned logit a head that joins the softmax (gpt_oss) */
    bool two_ropes;         /* windowed layers rotate by rope_local_base_freq (gemma3) */
    bool encoder; /* every position sees all: makes vectors or scores, and no tokens; see encoder_config */
    bool padded;  /* encoders: positions are counted from pad_token_id + 1 (roberta) */
    const char
        *prefix; /* encoders: in front of tensors' names where the model is a part of another: "bert." */
    bool tied_default;
    bool kv_heads_optional; /* absent num_key_value_heads = num_attention_heads */
    enum norms norms;
    enum qk_norm qk_norm;
    enum window_rule windows;
    enum activation act;
    enum moe_kind moe;
    double eps_default, theta_default; /* 0: 1e-6, 10000 */
    i32 head_dim_default;              /* 0: hidden / heads */
    i32 window_default;                /* sliding_window when the key is absent; 0: none */
    float score_cap, logit_cap;        /* soft caps when the keys are absent; 0: none */
};
const struct arch *model_arch(const char *model_type); /* NULL: unknown */

/* ---- rotary embedding */
enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_DYNAMIC, ROPE_LLAMA3, ROPE_LONGROPE, ROPE_YARN };
struct rope_config {
    enum rope_kind kind;
    u32 dims;         /* numbers of a head that are rotated: the first ones; even */
    bool interleaved; /* pairs (2m, 2m + 1) instead of (m, m + dims / 2) */
    double theta, factor;
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;              /* yarn */
    bool truncate;                            /* yarn: the ramp's ends are whole numbers */
    double attention;          /* cos and sin are multiplied by it; 1 unless yarn or longrope */
    u32 original_max_position; /* dynamic: max_position_embeddings as written */
    float short_factor[MODEL_MAX_HEAD / 2], long_factor[MODEL_MAX_HEAD / 2]; /* longrope: [dims / 2] */
};
/* inv[dims / 2]: the angle of a pair is position times inv. length: what "the current length" is for kinds that depend on it.
 *
 * Dynamic and longrope: here a token at position t of a sequence whose prompt has n tokens rotates by length max(n, t + 1): a
 * prompt as one forward pass over it would, later tokens by the length they make. It depends on the sequence alone, not on
 * chunks or the cache. */
void rope_frequencies(const struct rope_config *r, u32 length, float *inv);
/* Sequences whose prompts have lengths of one class rotate a common beginning alike, so that they may share cached blocks of
 * prompts: 0 wherever lengths do not matter. */
u32 rope_class(const struct rope_config *r, u32 prompt_len);

/* ---- mixture of experts, multi-head latent attention */
enum moe_score {
    SCORE_SOFTMAX, /* over all experts */
    SCORE_SIGMOID,
    SCORE_CHOSEN /* top k of the logits, softmax over the chosen */
};
struct moe_config {
    u32 experts, per_token; /* 0: none */
    u32 ffn, shared_ffn;    /* shared_ffn 0: no shared expert */
    u32 groups,
        top_groups; /* experts are in so many equal groups, only the best top_groups are looked at; 1, 1: no limit */
    bool pair_groups; /* a group's score: the sum of its two largest; else the largest */
    bool correction;  /* a bias is added to the scores for choosing, not for weighing */
    bool renormalise; /* weights are divided by their sum */
    bool shared_gate; /* the shared expert is multiplied by sigmoid(a product) */
    bool bias;        /* on router and experts */
    float scale;      /* of the weights, last */
    enum moe_score score;
};
struct mla_config { /* see the formulas of DeepSeek-V2; all 0: none */
    u32 q_rank;     /* 0: q is one product */
    u32 kv_rank, nope, rope, value;
};

enum quant_method { QUANT_NONE, QUANT_FP8, QUANT_AWQ, QUANT_GPTQ, QUANT_MXFP4 };
struct quant_config { /* how the folder has its weights */
    enum quant_method method;
    u32 block; /* fp8: a scale for each block x block weights; awq, gptq: for so many inputs, 0: all of them */
    bool v2;   /* gptq: zeros as they are, not one less */
    u32 bits;  /* awq, gptq: of a code, 4 or 8 */
    bool scattered; /* gptq with desc_act: g_idx has the group of each input, in any order */
};
/* As quantization_config spells it: "fp8"; QUANT_NONE: NULL. */
const char *quant_method_name(enum quant_method m);
/* Codes that products do not take: weights become numbers when they are loaded, or other codes. */
static inline bool quant_becomes_numbers(const struct quant_config *q)
{
    return q->scattered || q->bits > 4;
}

/* How a model is to be loaded: what the folder does not say. All 0 unless the caller sets it. */
struct model_load {
    enum dtype weights; /* of the layers' products: DTYPE_I8, DTYPE_I4; 0: as they are stored */
    bool dummy;         /* random weights of the right shapes; no file but config.json is read */
    bool kv_set;        /* the KV cache has a format of its own: */
    enum dtype kv;      /* F32, BF16, F16, I8 */
    const struct adapters
        *adapters; /* loaded with it; NULL: none. They outlive whatever has this configuration */
};

/* What modules.json, 1_Pooling/config.json and config_sentence_transformers.json say (sentence-transformers); or a classifier's
 * config.json. */
struct pooling_config {
    enum pooling
        kind; /* POOLING_NONE: the model generates; else it makes a vector of each text, and no tokens */
    bool normalize;    /* vectors are divided by their length */
    bool lowercase;    /* texts are made lower case before anything else */
    bool scores;       /* a cross-encoder: the vector is one number, how well two texts belong together */
    bool sigmoid;      /* of that number */
    char prompt[1024]; /* in front of every text ("default_prompt_name"); "": none */
    u32 width;         /* "word_embedding_dimension"; 0: absent */
};

/* What only encoders have: the sum of three embeddings (of tokens, positions and types), then a LayerNorm. */
struct encoder_config {
    u32 positions, first; /* rows of the table of positions, and the one of position 0 */
    u32 types;            /* of tokens: of the first and of the second text of a pair */
};

struct model_config {
    const struct arch *arch;
    char dir[PATH_LEN];
    u32 vocab, hidden, layers, heads, kv_heads, head_dim, ffn; /* MLA: head_dim is nope + rope */
    u32 max_position;                                          /* longest sequence */
    float eps;
    float score_scale;          /* q k is multiplied by it */
    float score_cap, logit_cap; /* c tanh(x / c); 0: none */
    float embed_scale;
    float act_limit, act_alpha;    /* ACT_CLAMPED */
    bool float32;                  /* config.json says that the weights are */
    bool tied;                     /* head = embedding */
    bool q_bias, o_bias, mlp_bias; /* q_bias: on q, k and v; MLA: on the products before the norms */
    enum qk_norm qk_norm;
    u32 window[MODEL_MAX_LAYERS];  /* tokens a layer sees, itself included; 0: all */
    bool sparse[MODEL_MAX_LAYERS]; /* a layer of experts */
    struct rope_config rope;       /* with two_ropes: of the layers without a window */
    struct rope_config rope_local; /* with two_ropes */
    struct moe_config moe;
    struct mla_config mla;
    struct quant_config quant;
    struct pooling_config pooling;
    struct encoder_config encoder;
    struct model_load load;
    /* generation_config.json over config.json; has_*: the model suggests it as a request default */
    i32 eos[MODEL_MAX_EOS];
    u32 n_eos;
    i32 bos; /* -1: none */
    bool has_temperature, has_top_p, has_top_k, has_repetition_penalty;
    float temperature, top_p, repetition_penalty;
    i32 top_k;
};
/* Numbers of the model's vectors; 0: it makes none. */
static inline u32 model_vector(const struct model_config *c)
{
    return !c->pooling.kind ? 0 : c->pooling.scores ? 1 : c->hidden;
}
/* Reads config.json, generation_config.json and the files of sentence-transformers of a folder. ERR_UNSUPPORTED for architectures and fields not offered. */
int model_read_config(const char *dir, struct model_config *out, struct error *err);

static const u32 MODEL_NO_FILE = UINT32_MAX;
struct tensor { /* where a tensor's bytes are */
    enum dtype dtype;
    char stored[16]; /* the type as the file spells it: "BF16" */
    u32 n_dims;
    u64 dims[4];       /* the first four */
    u32 file;          /* MODEL_NO_FILE: made up; offset is a number of its own then */
    u64 offset, bytes; /* in that file */
};
struct model_files;
/* Opens model.safetensors, or model.safetensors.index.json and its shards; reads and checks all headers (overlaps, holes, sizes,
 * duplicate names, truncated files). */
struct model_files *model_open(const char *dir, struct error *err);
struct model_files *model_open_none(void); /* no tensors */
void model_close(struct model_files *f);
const struct tensor *model_tensor(const struct model_files *f, const char *name); /* NULL: absent */
size_t model_tensor_count(const struct model_files *f);
const char *model_tensor_name(const struct model_files *f, size_t i);
const struct tensor *model_tensor_at(const struct model_files *f, size_t i);
/* Bytes [off, off + len) of a tensor with large reads (never page faults); a file that shrank meanwhile is ERR_IO naming it. */
int model_read(const struct model_files *f, const struct tensor *t, u64 off, void *to, u64 len,
               struct error *err);
/* Tells storage that these bytes of a tensor will be read soon, and does not wait for them. A hint, which a file system may
 * ignore. */
void model_ahead(const struct model_files *f, const struct tensor *t, u64 off, u64 len);
/* n pieces of len bytes, the first at off, their begins stride apart, one behind the other in `to`: a part of
 * each of n rows. Storage is asked for what lies between as well, in large reads: other engines of the node
 * need it, and pieces are small. */
int model_read_rows(const struct model_files *f, const struct tensor *t, u64 off, u64 stride, void *to,
                    u64 len, u32 n, struct error *err);
/* A folder's one file, whatever it is called. */
struct model_files *model_open_single(const char *dir, const char *name, struct error *err);
/* Names, shapes and dtypes of all tensors, some bytes of some of them, and the contents of config.json, of adapters too: equal on all ranks of a job or the ranks are refused. */
u64 model_fingerprint(const struct model_config *c, const struct model_files *f);

/* ---- adapters: PEFT folders with LoRA: a product W x becomes W x + scale B (A x), with A [rank, inputs] and B [outputs, rank];
 * scale = lora_alpha / rank, with use_rslora lora_alpha / sqrt(rank). Which modules are changed is told by the tensors, named
 * base_model.model.MODULE.lora_A.weight and lora_B.weight. Refused by name: other kinds than LORA, biases, DoRA, modules_to_save and
 * all fields that are not known and ask for something. */
struct adapter {
    char name[128], dir[PATH_LEN];
    struct model_files *files;
    struct json *config;
    u64 config_hash;
    u32 rank, max_rank; /* max_rank: with rank_pattern */
    double alpha;
    bool rank_stable;
};
struct adapters {
    u32 n; /* a request names one by its number here, from 1; 0: the model as it is */
    struct adapter list[MODEL_MAX_ADAPTERS];
};
/* Opens and checks a folder. adapter_close after success only. */
int adapter_open(struct adapter *a, const char *name, const char *dir, struct error *err);
void adapter_close(struct adapter *a);
struct adapter_module {
    const struct tensor *a, *b; /* in the adapter's files */
    u32 rank;
    float scale;
};
/* What it adds to a module of the model ("model.layers.0.self_attn.q_proj"), a product of that shape: 1; 0: nothing; else an error that
 * names the tensor. */
int adapter_module(const struct adapter *a, const char *module, u32 n_out, u32 n_in,
                   struct adapter_module *out, struct error *err);

#endif
