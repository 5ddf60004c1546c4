/* engine: the process that holds weights and KV and runs forward passes; `mpiserve engine`, started by proc.
 *
 * It uses what its boot parameters name and nothing else: the channel (FD_CHANNEL..FD_TO_AGENT), the weights (FD_WEIGHTS) and
 * KV (FD_KV) memory, its CPUs, its number of threads. It starts no process, opens no socket, and reads
 * only the model's folder. All state of requests lives in the scheduler; the engine's row table is a cache that
 * seq_new rebuilds exactly, so it may be killed at any moment.
 *
 * Life: attach, tie itself to its agent (PR_SET_PDEATHSIG), LOADING, READY, then one step after the other until it is
 * killed. When it cannot go on it writes the reason into the channel (channel_error), and exits with 1.
 * Weights: the engine with boot.loader fills the image, the others on its host wait for it; afterwards all map it read-only.
 * A loader that finds a whole image (after a restart) uses it; one that finds half an image fills it anew. Only one loader may
 * live for an image at a time.
 *
 * A sequence's output is a pure function of its tokens, its sampling and the numerics class: the same after a
 * restart, in other batches, with another cut of the prompt.
 *
 * Several engines of a replica (step.h, "groups"): tensor parallel splits heads, ffn and vocabulary of every
 * layer over tp engines, pipeline parallel the layers over pp stages. Each engine reads only its part of the
 * files. The numbers of a sequence do not depend on its batch at a given tp and pp; another tp adds partial
 * sums in another order, and is another numerics class.
 *
 * compute "null" (--engine null) makes an engine that does everything but the maths: no weights, no KV; a step takes
 * null_step_us, a token is one of a few by its position alone. For measuring what is around the engine.
 *
 * Test hooks: the variable MPISERVE_FAULT of the engine (see proc.h: only what the agent passes on) names one fault:
 *   crash-step:N   abort before step N of generation 1     stall-step:N  hang before step N of generation 1
 *   crash-token:T  abort when token T is computed          nan-token:T   non-finite logits after token T
 *   slow-step:MS   sleep so long before every step         crash-load:0  abort while loading
 * Nothing is looked at where it is not set. */
#ifndef MPISERVE_ENGINE_H
#define MPISERVE_ENGINE_H

#include "mpiserve/base.h"
#include "mpiserve/step.h"

/* `mpiserve engine`: does not return while its agent lives; the result is the exit status. */
int engine_main(int argc, char **argv);

/* ---- for agents, without an engine: what one would need. Any thread; reads the model's headers only. */
struct config_adapter;
struct engine_ask {
    const char *model;   /* folder */
    const char *compute; /* "auto", "f32", "bf16", "f16" (cuda), "null" */
    const char
        *isa; /* "auto": the best of this machine; or a level that every rank of the job has; or "cuda" */
    const char *quantization, *load_format,
        *kv_cache_dtype; /* words of the options of these names; NULL: auto */
    u32 block_size;      /* tokens, a multiple of 16 */
    u32 max_model_len;   /* 0: the model's; more than that is an error */
    u32 max_rows, max_step_tokens, max_logprobs, threads; /* for work_bytes; max_rows 0: not asked */
    const struct config_adapter *adapters;                /* [n_adapters] */
    u32 n_adapters;
    u32 tp, pp, tp_rank, pp_rank; /* which part of a replica of several engines; tp and pp 0: as 1 */
};
/* Of a job with these options, at this level (kept, not copied, as all its texts); tp_rank, pp_rank and threads are 0. */
struct config;
void engine_ask_of(const struct config *c, const char *isa, struct engine_ask *out);
/* And what they ask of the placement. */
struct place_spec;
void engine_place_of(const struct config *c, struct place_spec *out);
struct engine_needs {          /* of this one engine */
    char compute[16], isa[16]; /* resolved, as engine_boot wants them */
    bool null;                 /* compute is "null" */
    bool device;               /* it works on a GPU, and the bytes below are that one's */
    u64 weights_bytes;         /* of the weights memory, head included; of this engine's part */
    u64 kv_bytes_per_block;    /* of this engine's layers and heads */
    u64 work_bytes;  /* activations, logits, samplers, tables of rows: what an engine allocates for itself */
    u64 fingerprint; /* of the model's folder: equal on all ranks, or the ranks are refused */
    u32 numerics; /* class of bit-identical results: build, instruction set, compute, quantization, KV format, block size, tp, pp */
    u32 vocab, max_model_len; /* as asked, or the model's */
    u32 hidden;               /* numbers of a vector; 0: the model generates */
    u32 most_tokens; /* an encoder keeps nothing between steps: tokens of the steps in flight; 0: other models */
};
/* ERR_INPUT where an encoder, which reads a prompt in one step, has positions for longer prompts than a step takes.
 * ERR_UNSUPPORTED, with both numbers, where tp does not divide the attention heads, ffn or vocabulary, where
 * neither of tp and KV heads divides the other, and where there are fewer layers than stages. Parts of a
 * replica share the block numbers: all its engines get the same n_blocks, the least that one of them has room for. */
int engine_plan(const struct engine_ask *ask, struct engine_needs *out, struct error *err);
/* Bytes for KV on a device. All but that share of its memory stays unplanned, of what is free, whoever has the rest already: for NCCL,
 * what CUDA loads when it is first used, and lists of the sampler that grow. So total x share where nothing is in use. */
struct engine_device {
    u64 total, free;
    double share;
    u64 asked; /* for KV; 0: what weights and work leave (max_rows and max_step_tokens must have been asked for) */
};
/* ERR_MEMORY with the numbers when nothing is left, ERR_INPUT when less is left than was asked for. */
int engine_device_room(const struct engine_needs *needs, const struct engine_device *d, u64 *out,
                       struct error *err);
/* Blocks of the KV cache that an engine gets out of kv_bytes: one that is never handed out, and enough for max_rows sequences of
 * max_model_len tokens (an encoder: for most_tokens) if there is room, else as many as there is room for. Pure. ERR_INPUT with both numbers when not
 * even one whole sequence fits. */
struct engine_limits {
    u32 max_rows, max_model_len, block_size;
};
int engine_blocks(const struct engine_needs *needs, const struct engine_limits *limits, u64 kv_bytes,
                  u32 *out, struct error *err);
/* kv_bytes where the user names none: a rank's part of half of its node's free memory. */
u64 engine_kv_share(u64 memory, u32 ranks);
/* Ring size of a channel for these limits: two results frames fit at once, wherever they come to lie, and two steps of all rows with a
 * new sequence of max_model_len tokens and 1 MiB of lists. A frame may be a quarter of it. */
size_t engine_ring_size(u32 max_rows, u32 max_step_tokens, u32 max_model_len, u32 max_logprobs, u32 hidden,
                        u32 block_size);

/* ---- an engine in this process, to measure it: without agent, channel and scheduler. Its steps are a job's: the same rows, forward pass
 * and sampling. One thread, beside the pool that it makes; with isa "cuda" on the first device that is visible. */
struct engine_solo;
/* Room for max_rows sequences of max_model_len tokens. NULL: what engine_plan says; ERR_UNSUPPORTED for models of vectors, replicas of
 * several engines, adapters and compute "null"; no memory; a folder that cannot be read. */
struct engine_solo *engine_solo_new(const struct engine_ask *ask, struct error *err);
void engine_solo_free(struct engine_solo *s); /* NULL is fine */
const struct engine_needs *engine_solo_needs(const struct engine_solo *s);
const char *engine_solo_device(const struct engine_solo *s); /* its name; NULL: the CPU */
/* New sequences in place of the old ones: n of them, whose first `cached` tokens (a multiple of block_size) count as computed, with zeros
 * for K and V, and `prompt` (1 or more) further ones. */
void engine_solo_begin(struct engine_solo *s, u32 n, u32 cached, u32 prompt);
/* The next n_tok tokens of each sequence; with the last of what is known of it a token is chosen, greedily, and is known then. *ns: the time
 * that the engine took. */
int engine_solo_step(struct engine_solo *s, u32 n_tok, u64 *ns, struct error *err);
struct engine_cost { /* of a step, at the least; see engine/cost.h */
    double flops, bytes;
};
struct engine_cost engine_solo_cost(const struct engine_solo *s, u32 n_tok); /* of the next step */
struct engine_speed {                                                        /* a second */
    double flops, bytes;
};
/* What products of weights in this compute, and memory, give here; measured, about a second long. */
int engine_solo_speed(const struct engine_solo *s, struct engine_speed *out, struct error *err);

#endif
