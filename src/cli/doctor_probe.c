/* The two ranks that `mpiserve doctor` starts: messages there and back, slots reserved and released, as a job would. */
#include "cli/doctor.h"
#include "mpiserve/cli.h"
#include "mpiserve/json.h"
#include "mpiserve/slots.h"
#include "mpiserve/wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROUNDS = 2000, SLOTS = 8, LIMIT_S = 3, PING = 1, STOP };

struct counter {
    u32 pings;
    bool stop;
};

static void on_message(void *ctx, u32 from, u16 type, const void *body, size_t len)
{
    struct counter *c = ctx;
    (void)from, (void)body, (void)len;
    if (type == PING) c->pings++;
    if (type == STOP) c->stop = true;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *times, u32 n)
{
    qsort(times, n, sizeof(*times), compare);
    return n ? times[n / 2] : 0;
}

/* The other rank answers each ping, and its MPI completes our operations, until it is told to stop. */
static int serve(struct wire *w, struct error *err)
{
    struct counter c = {0};
    u32 answered = 0;
    u64 end = clock_ns() + 3 * LIMIT_S * NS_PER_S;
    int rc = 0;
    while (!c.stop && rc >= 0 && clock_ns() < end) {
        rc = wire_poll(w, on_message, &c, err);
        for (; answered < c.pings && rc >= 0; answered++) rc = wire_send(w, 0, PING, "12345678", 8, err);
    }
    return MIN_OF(rc, 0);
}

static int measure_messages(struct wire *w, double *us, struct error *err)
{
    double *times = mem_zero(ROUNDS, sizeof(*times));
    struct counter c = {0};
    u64 end = clock_ns() + LIMIT_S * NS_PER_S;
    u32 n = 0;
    int rc = 0;
    for (; n < ROUNDS && rc >= 0 && clock_ns() < end; n++) {
        u64 start = clock_ns();
        rc = wire_send(w, 1, PING, "12345678", 8, err);
        while (rc >= 0 && c.pings <= n && clock_ns() < end) rc = wire_poll(w, on_message, &c, err);
        times[n] = (double)(clock_ns() - start) / NS_PER_US;
    }
    *us = median(times, n);
    free(times);
    return MIN_OF(rc, 0);
}

static int measure_slots(struct slots *s, double *us, struct error *err)
{
    double *times = mem_zero(ROUNDS, sizeof(*times));
    struct slots_answer answer;
    u64 end = clock_ns() + LIMIT_S * NS_PER_S;
    u32 n = 0;
    int rc = 0;
    for (; n < ROUNDS && rc >= 0 && clock_ns() < end; n++) {
        u64 start = clock_ns();
        rc = slots_reserve(s, 0, 1, SLOTS, SLOT_CLASS_SHORT, &answer, err);
        if (rc == 0 && !answer.accepted) rc = error_set(err, ERR_FULL, "slots", "a free slot was refused");
        if (rc == 0) rc = slots_release(s, 1, &answer.token, err);
        times[n] = (double)(clock_ns() - start) / NS_PER_US;
    }
    *us = median(times, n);
    free(times);
    return MIN_OF(rc, 0);
}

static void report(const struct wire *w, double message, double slot)
{
    struct buf text = {0};
    struct json_out o;
    const char *osc = getenv("OMPI_MCA_osc");
    json_out_init(&o, &text);
    json_out_object(&o);
    json_out_key(&o, "library");
    json_out_str(&o, wire_library(w));
    json_out_key(&o, "osc");
    json_out_str(&o, osc ? osc : "");
    json_out_key(&o, "message_us");
    json_out_real(&o, message);
    json_out_key(&o, "slot_us");
    json_out_real(&o, slot);
    json_out_end_object(&o);
    printf(PROBE_MARK "%s\n", text.data);
    fflush(stdout);
    buf_release(&text);
}

static int probe(struct wire *w, struct slots *s, struct error *err)
{
    double message = 0, slot = 0;
    if (wire_rank(w) == 1) {
        int rc = slots_open(s, 0, SLOTS, err);
        if (rc == 0) rc = wire_barrier(w, err);
        return rc ? rc : serve(w, err);
    }
    int rc = wire_barrier(w, err);
    if (rc == 0 && wire_rank(w) > 1) return 0;
    if (rc == 0) rc = measure_messages(w, &message, err);
    if (rc == 0) rc = measure_slots(s, &slot, err);
    int told = wire_send(w, 1, STOP, "", 0, rc ? NULL : err);
    if (rc == 0) rc = told;
    if (rc == 0) report(w, message, slot);
    return rc;
}

int cli_doctor_probe(int argc, char **argv)
{
    static const u32 node_of[2] = {0};
    struct slots_spec spec = {
        .epoch = 1, .node_of = node_of, .lease_short_ns = 60 * NS_PER_S, .lease_long_ns = 60 * NS_PER_S};
    struct error err;
    char text[1100];
    log_setup(LOG_INFO, "");
    struct wire *w = wire_init(&argc, &argv, &err);
    int rc = w ? 0 : -1;
    if (rc == 0 && wire_size(w) != 2)
        rc = error_set(&err, ERR_INPUT, "doctor-probe", "is for two ranks, started by `mpiserve doctor`");
    struct slots *s = rc == 0 ? slots_new(&spec, &err) : NULL;
    if (s) rc = probe(w, s, &err);
    if (!s) rc = -1;
    if (rc) {
        log_error("%s", error_text(&err, text, sizeof(text)));
        wire_abort(w, 1);
    }
    slots_free(s);
    wire_end(w);
    return 0;
}
