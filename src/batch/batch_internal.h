/* Inside batch/: jobs (requests), sequences, rows. */
#ifndef MPISERVE_BATCH_INTERNAL_H
#define MPISERVE_BATCH_INTERNAL_H

#include "mpiserve/batch.h"
#include "mpiserve/kv.h"

enum { NO_ROW = 0xffffffff };

struct job;
struct seq {
    struct job *job;
    u32 sample;
    bool ended, dirty; /* dirty: has output or an end that was not flushed */
    u8 finish;
    i32 stop_id;
    i32 *tokens; /* prompt + output known so far */
    u32 n_tokens, cap_tokens;
    u32 flushed; /* output tokens already flushed */
    u32 row;     /* NO_ROW: waits */
    /* of the current residence in a row */
    bool sent;     /* seq_new was planned */
    u32 planned;   /* positions whose computation was planned */
    u32 pending;   /* samples planned and not committed */
    u32 committed; /* positions that are computed */
    u64 last_step; /* id of the last step it is part of */
    u32 *blocks;
    u32 n_blocks, n_blocks_sent, cap_blocks;
    struct kv_link link; /* the cached block of the last of the n_linked blocks */
    u32 n_linked;
    bool unlinked;       /* no block of it can be cached any more */
    bool was_looked_up;  /* in any residence */
    u32 n_cached;        /* tokens found then */
    struct buf logprobs; /* struct token_logprob[] of tokens not flushed */
    struct buf vector;   /* float[], pooled */
};
struct job {
    struct job *next, *prev; /* all jobs, in scheduling order: priority, then arrival */
    struct request *request; /* own copy */
    u32 origin;
    u32 n_live;    /* sequences not ended */
    u32 kills;     /* engine deaths it was blamed for */
    bool suspect;  /* was in flight at a death, has not proven itself since: runs alone */
    bool last_set; /* the chunk with `last` was flushed */
    char error[200];
    struct seq *seqs; /* [n_samples] */
};
struct row_slot {
    struct seq *seq;
    u32 gen; /* rises whenever the row changes hands */
};
/* A prompt chunk in a step: its end is committed with the step, and no result says so. */
struct chunk_note {
    u32 row, row_gen, end;
};
struct batch {
    struct batch_spec spec;
    struct kv_blocks *kv;
    struct job *first, *last;
    struct row_slot *rows;
    u32 *free_rows, n_free_rows;
    struct seq_free *to_free; /* rows the engine must forget, in the next step */
    u32 n_to_free, cap_to_free;
    bool engine_up;
    u32 gen;
    u64 next_step, committed_step; /* ids of this generation */
    struct buf frame;
    struct planned_row { /* of the step being planned */
        struct seq *seq;
        u32 n_tok, first_block;
        bool want;
    } * plan;
    u32 n_plan;
    struct chunk_note *notes[STEP_IN_FLIGHT_MOST]; /* [max_rows], of step id % STEP_IN_FLIGHT_MOST */
    u32 n_notes[STEP_IN_FLIGHT_MOST];
    struct block_seen { /* [n_blocks]: scratch of a count, see blocks_behind */
        u64 round;
        u32 times;
    } * seen;
    u64 round;
    u64 *ended; /* request ids */
    u32 n_ended, cap_ended;
    struct buf *out; /* per origin */
    u32 n_out;
    u32 n_dirty, n_suspects;
    struct batch_counts counts;
};

static inline u32 seq_n_out(const struct seq *s)
{
    return s->n_tokens - s->job->request->prompt.len;
}
static inline bool seq_pooled(const struct seq *s)
{
    return s->job->request->pooling != POOLING_NONE;
}
static inline u32 seq_limit(const struct batch *b, const struct seq *s) /* history never grows beyond */
{
    u64 n = (u64)s->job->request->prompt.len + (seq_pooled(s) ? 0 : s->job->request->sampling.max_tokens);
    return n < b->spec.max_model_len ? (u32)n : b->spec.max_model_len;
}
/* Positions [0, upto) are computed: full blocks of them can be cached. */
void seq_committed(struct batch *b, struct seq *s, u32 upto);
/* Gives blocks and row back; the sequence waits again. */
void seq_evict(struct batch *b, struct seq *s);
void seq_end(struct batch *b, struct seq *s, enum finish how, i32 stop_id);
void seq_dirty(struct batch *b, struct seq *s);
void job_fail(struct batch *b, struct job *j, const char *why);
void job_drop(struct batch *b, struct job *j);
void job_clear_suspicion(struct batch *b, struct job *j);

#endif
