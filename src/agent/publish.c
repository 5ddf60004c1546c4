/* What a replica's prefix cache holds, for routers that send a prompt where it is cached. */
#include "agent/leader_internal.h"
#include <stdlib.h>

enum { PUBLISH_MS = 10, CHANGES_MAX = 512 };

static void send_cached(struct leader *l, const struct cached_change *changes, u32 n, bool anew)
{
    struct msg_cached m = {.replica = l->replica, .anew = anew, .n = n};
    for (u32 i = 0; i < l->agent->n_ingresses; i++)
        agent_send(l->agent, agent_ingress_rank(l->agent, i), MSG_CACHED, &m, sizeof m, changes,
                   n * sizeof *changes);
}

/* More changed than was kept: all that is cached, in several messages. */
static void send_snapshot(struct leader *l, struct cached_change *changes)
{
    u32 n = batch_cached(l->batch, NULL, 0);
    u64 *hashes = mem_alloc((n + 1) * sizeof *hashes);
    batch_cached(l->batch, hashes, n);
    u32 at = 0;
    do { /* nothing is cached: a message says that, too */
        u32 part = MIN_OF(n - at, (u32)CHANGES_MAX);
        for (u32 i = 0; i < part; i++) changes[i] = (struct cached_change){hashes[at + i], false};
        send_cached(l, changes, part, at == 0);
        at += part;
    } while (at < n);
    free(hashes);
}

/* While the replica is busy, what changed in a while goes together. */
void leader_publish(struct leader *l, u64 now)
{
    struct cached_change changes[CHANGES_MAX];
    u32 n = 0;
    u64 hash;
    if (!l->publishes || (now < l->published_ns + PUBLISH_MS * NS_PER_MS && !batch_idle(l->batch))) return;
    for (enum kv_change c; (c = batch_next_change(l->batch, &hash)) != KV_UNCHANGED;) {
        l->published_ns = now;
        if (c == KV_ALL_CHANGED) {
            n = 0;
            send_snapshot(l, changes);
            continue;
        }
        changes[n++] = (struct cached_change){hash, c == KV_REMOVED};
        if (n == CHANGES_MAX) send_cached(l, changes, n, false), n = 0;
    }
    if (n) send_cached(l, changes, n, false);
}
