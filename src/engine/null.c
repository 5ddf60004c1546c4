#include "engine/null.h"

#include <time.h>

enum { FIRST = 68, LETTERS = 22 };

struct choice null_choose(u32 position, u32 vocab, const struct sampling *s, struct token_logprob *logprobs)
{
    struct choice c = {.state = SAMPLER_OK, .token = (i32)((FIRST + position % LETTERS) % vocab)};
    if (!logprobs) return c;
    c.n_logprobs = MIN_OF(1 + (u32)s->n_logprobs, vocab);
    for (u32 i = 0; i < c.n_logprobs; i++) { /* the chosen one, then the best, of which it is the first */
        u32 place = i ? i - 1 : 0;
        logprobs[i] = (struct token_logprob){
            .id = (i32)(((u32)c.token + place) % vocab), .logprob = place ? -100 : 0, .rank = (i32)place + 1};
    }
    return c;
}

void null_vector(u32 n_tok, float *vector, u32 n)
{
    for (u32 i = 0; i < n; i++) vector[i] = i == n_tok % n ? 1 : 0;
}

void null_wait(u32 us)
{
    if (us) nanosleep(&(struct timespec){us / 1000000, us % 1000000 * 1000l}, NULL);
}
