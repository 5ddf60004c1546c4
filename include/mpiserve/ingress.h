/* ingress: the HTTP side: OpenAI API, authentication, server-sent events, metrics page.
 *
 * Threads: HTTP threads (a pool of the HTTP library) read, check, render templates and tokenize; they hand a request to the agent's
 * main thread through struct ingress_agent and sleep (suspended connection). The main thread hands chunks back with
 * ingress_deliver; HTTP threads detokenize, look for stop strings and write. No HTTP thread ever waits for MPI or an engine.
 *
 * Contract between both sides: every request that was submitted (submit returned 0) gets chunks until one with `last`, exactly one;
 * cancel only hastens it. The agent frees nothing of the request but the block it was given. After a cancel, or when the
 * client is gone, chunks are still delivered and dropped here.
 *
 * Limits, all options: size and number of headers (431, 414), size of the body (413), time for the headers and for the body (408),
 * idle time, connections in all and of one client (429). Behind an error that leaves the end of the request unclear the connection is
 * closed. Some errors never get here, the HTTP library answers them itself, with a short page instead of an error object: a line that
 * is no HTTP (400), another version (505), a request without Host (400), bad chunks (400, 413), headers beyond the memory of a
 * connection (431, 414), and a line of a chunk beyond it (500). It cuts a header's value at a NUL, and reads bare LF as a line end.
 *
 * Life cycle: ingress_new (opens the port: errors name it) -> ingress_ready (from now on requests are accepted; before: 503) ->
 * ingress_drain -> ingress_idle until true -> ingress_free. */
#ifndef MPISERVE_INGRESS_H
#define MPISERVE_INGRESS_H

#include "mpiserve/base.h"
#include "mpiserve/config.h"
#include "mpiserve/model.h"
#include "mpiserve/request.h"
#include "mpiserve/route.h" /* struct route_ask, enum reservation_state */

/* A slot that a client holds, for an external scheduler: POST /v1/reservations takes one and never waits for it, a request with its
 * id in the header X-Reservation is dispatched to that very slot, once; DELETE /v1/reservations/ID gives it back as often as one
 * likes; else its time ends. A request whose body is refused (400) does not use it. Errors of its use: 404 for an id that is not
 * known, 409 used, 410 released or expired. While the server drains, those that are held are honoured and none is granted. */
struct ingress_reservation {
    struct reservation_id id;
    enum reservation_state state;
    i32 replica, rank, node_rank, local_rank; /* ReplicaRank */
    u32 num_ongoing;                          /* of the replica when it was granted, with this one */
    u32 expires_in_ms;                        /* held: time left; else 0 */
};
/* Service levels (slo_ttft_ms, slo_itl_ms) are judged here, as clients see them: time to first token from a request's headers to its
 * first token, of each prompt's first sample; the other of each sample, mean time a token after its first. Counted in
 * mpiserve_slo_*_total{result="met"|"missed"}; requests that end before are not. */
/* What the ingress asks of the agent. All called from HTTP threads; none may block. */
struct ingress_health {
    bool ok; /* a replica of every deployment makes progress and the main loop turns */
    bool loading, draining;
    char reason[160]; /* why not ok */
};
struct ingress_refusal {
    u32 retry_after_s;
    u32 predicted_ms,
        allowed_ms; /* ERR_FULL: its first token would come too late (429). allowed_ms 0: no room (503) */
};
struct ingress_agent {
    void *agent;
    /* Takes the block (malloc'd; the agent frees it). 0, or ERR_FULL (queue full, too late), ERR_STATE (draining, no replica): nothing
     * was taken; *why is set then. reservation NULL: none. Else it is used up when 0 is returned, and only then; ERR_NOT_FOUND: there is
     * none of that id; positive: its state (enum reservation_state), which is not HELD any more. */
    int (*submit)(void *agent, struct request *r, const struct reservation_id *reservation,
                  struct ingress_refusal *why);
    void (*cancel)(void *agent, u64 request);
    /* Asks for a reservation; ingress_reserved will be called once with the same number, from the main thread. about: what the router may know. ERR_STATE (draining, no
     * replica) or ERR_IO (no random numbers): it will not. */
    int (*reserve)(void *agent, u64 ask, const struct route_ask *about);
    /* What became of one; release: gives it back if it is held. 0 or ERR_NOT_FOUND. */
    int (*reservation)(void *agent, const struct reservation_id *id, bool release,
                       struct ingress_reservation *out);
    void (*health)(void *agent, struct ingress_health *out);
    void (*topology)(void *agent, struct buf *json); /* body of /v1/topology, appended */
    void (*metrics)(void *agent, struct buf *text);  /* the agent's part of /metrics, appended */
    void (*drain)(void *agent);                      /* POST /admin/drain: as SIGUSR1 does */
    u32 (*in_flight)(void *agent);                   /* requests queued or running, for /load */
};
struct ingress_spec { /* copied; what it points to outlives the ingress */
    const struct config *config;
    const struct model_config *model; /* its folder holds the tokenizer and the chat template too */
    u32 max_model_len;                /* resolved */
    u32 ingress_index;                /* of request ids */
    const char *key;                  /* the API key, or NULL: none asked for */
    char fingerprint[64];             /* system_fingerprint of answers */
    struct ingress_agent agent;
};
struct ingress;
struct ingress *ingress_new(const struct ingress_spec *spec, struct error *err);
int ingress_port(const struct ingress *in); /* the real one */
void ingress_ready(struct ingress *in);
/* Main thread: new tokens of a request of this ingress, as chunk_next gave them; the chunk is copied. Unknown ids are dropped. */
void ingress_deliver(struct ingress *in, const struct chunk *c);
/* Main thread: the answer to `reserve`. r NULL: refused, with the reason. False: nobody waits for it any more, so that what
 * was reserved is the caller's to give back. */
bool ingress_reserved(struct ingress *in, u64 ask, const struct ingress_reservation *r, const char *why,
                      u32 retry_after_s);
/* From now on every new request is refused with 503, Retry-After, Connection: close, unless it has a reservation; /health says draining. */
void ingress_drain(struct ingress *in);
bool ingress_idle(struct ingress *in); /* no request is being answered, none is with the agent */
/* Running streams get a final error chunk with this text, waiting calls a 503. They leave in the HTTP threads' time: look at
 * ingress_idle for a moment before ingress_free, which cuts off what is left. */
void ingress_abort(struct ingress *in, const char *why);
void ingress_free(struct ingress *in);

#endif
