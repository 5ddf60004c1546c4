/* Inside of cli/: prompts that share prefixes, and the caches of replicas, for the simulation.
 *
 * A session is a row of conversations of PROMPT_TURNS turns. A prompt is the system prompt of its session (one for PROMPT_SHARED
 * sessions), all earlier turns of the conversation, and a question; a turn is a question and its answer. Blocks are named by
 * chained hashes: equal ones stand for equal prefixes. */
#ifndef CLI_ROUTE_PROMPTS_H
#define CLI_ROUTE_PROMPTS_H

#include "mpiserve/route.h"

enum {
    PROMPT_SYSTEM = 16,
    PROMPT_QUESTION = 2,
    PROMPT_TURN = 4,
    PROMPT_TURNS = 8,
    PROMPT_SHARED = 100
}; /* blocks */
enum { PROMPT_MOST = PROMPT_SYSTEM + PROMPT_TURN * PROMPT_TURNS };
#define PROMPT_MEAN (PROMPT_SYSTEM + PROMPT_QUESTION + PROMPT_TURN * (PROMPT_TURNS - 1) / 2.0)
struct prompt {
    u64 hashes[PROMPT_MOST];
    u32 n;      /* asked */
    u32 n_then; /* with the answer */
};
/* The request number `turn` (from 0) of a session. */
void prompt_make(u64 session, u32 turn, struct prompt *out);

/* One cache a replica, of a fixed number of blocks; the one used longest ago goes, of a prompt the last block first. */
enum { CACHE_LEAST = 64, CACHE_MOST = 4096 };
struct caches;
struct caches *caches_new(u32 replicas, u32 blocks);
void caches_free(struct caches *c);
/* How many of the first hashes were there; all are, afterwards. tell: gets what came and went; NULL: caches_tell does it. */
u32 caches_use(struct caches *c, struct router *tell, u32 replica, const u64 *hashes, u32 n);
void caches_tell(struct caches *c, struct router *tell,
                 u32 replica); /* all it holds, if the router does not know */

#endif
