/* /v1/reservations: slots that clients hold. Only the main thread touches slots, so a POST sleeps until it has answered; what became
 * of a reservation is known at once. */
#include "ingress/http.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ask {
    struct ask *next; /* this and all below: under the lock of the list */
    u64 id;
    struct exchange *x;
    bool sleeping, answered, granted;
    struct ingress_reservation reservation;
    char why[160];
    u32 retry_after_s;
};

/* ---- ids ----------------------------------------------------------------------------------------------------- */
bool reservation_id_read(const char *text, struct reservation_id *id)
{
    static const char digits[] = "0123456789abcdef";
    if (strlen(text) != 32 || strspn(text, digits) != 32) return false;
    *id = (struct reservation_id){{0}};
    for (int i = 0; i < 32; i++)
        id->bits[i / 16] = id->bits[i / 16] << 4 | (u64)(strchr(digits, text[i]) - digits);
    return true;
}

int reservation_fail(int rc, struct api_error *e)
{
    static const char header[] = "X-Reservation";
    switch (rc) {
    case RESERVATION_USED:
        api_fail(e, API_RESERVATION_USED, header,
                 "This reservation was used already; it is good for one request.");
        break;
    case RESERVATION_RELEASED:
        api_fail(e, API_RESERVATION_RELEASED, header, "This reservation was released.");
        break;
    case RESERVATION_EXPIRED:
        api_fail(e, API_RESERVATION_EXPIRED, header,
                 "This reservation has expired: it was not used in time (--reservation-lease).");
        break;
    default:
        api_fail(e, API_NO_RESERVATION, header,
                 "There is no reservation with this id: it never was one, ended long ago, or is another "
                 "ingress's.");
    }
    e->no_retry = true; /* clients come again after a 409 */
    return -1;
}

/* ---- the list ------------------------------------------------------------------------------------------------ */
void asks_init(struct ingress *in)
{
    pthread_mutex_init(&in->asks.lock, NULL);
}

void asks_release(struct ingress *in)
{
    pthread_mutex_destroy(&in->asks.lock);
}

/* With the lock held. */
static void wake(struct ask *a)
{
    if (a->sleeping) exchange_wake(a->x);
    a->sleeping = false;
}

void asks_wake_all(struct ingress *in)
{
    pthread_mutex_lock(&in->asks.lock);
    for (struct ask *a = in->asks.first; a; a = a->next) wake(a);
    pthread_mutex_unlock(&in->asks.lock);
}

static void ask_open(struct exchange *x)
{
    struct asks *list = &x->in->asks;
    x->ask = mem_zero(1, sizeof(*x->ask));
    x->ask->x = x;
    pthread_mutex_lock(&list->lock);
    x->ask->id = ++list->last_id;
    x->ask->next = list->first;
    list->first = x->ask;
    pthread_mutex_unlock(&list->lock);
}

void ask_close(struct exchange *x, bool told)
{
    struct asks *list = &x->in->asks;
    struct ask *a = x->ask;
    struct ingress_reservation unused;
    pthread_mutex_lock(&list->lock);
    struct ask **at = &list->first;
    while (*at != a) at = &(*at)->next;
    *at = a->next;
    pthread_mutex_unlock(&list->lock);
    const struct ingress_agent *agent = &x->in->spec.agent;
    if (a->granted && !told) (void)agent->reservation(agent->agent, &a->reservation.id, true, &unused);
    free(a);
}

bool ingress_reserved(struct ingress *in, u64 ask, const struct ingress_reservation *r, const char *why,
                      u32 retry_after_s)
{
    pthread_mutex_lock(&in->asks.lock);
    struct ask *a = in->asks.first;
    while (a && a->id != ask) a = a->next;
    if (a) {
        a->answered = true;
        a->granted = r != NULL;
        if (r) a->reservation = *r;
        snprintf(a->why, sizeof(a->why), "%s", why ? why : "");
        a->retry_after_s = retry_after_s;
        wake(a);
    }
    pthread_mutex_unlock(&in->asks.lock);
    return a != NULL;
}

/* ---- pages --------------------------------------------------------------------------------------------------- */
static void write_reservation(const struct ingress *in, const struct ingress_reservation *r, struct buf *to)
{
    char id[33];
    snprintf(id, sizeof(id), "%016llx%016llx", (unsigned long long)r->id.bits[0],
             (unsigned long long)r->id.bits[1]);
    const struct {
        const char *key, *value;
    } texts[] = {{"id", id},
                 {"object", "reservation"},
                 {"state", reservation_state_name(r->state)},
                 {"deployment", in->model_name}};
    const struct {
        const char *key;
        i64 value;
    } numbers[] = {{"replica", r->replica},         {"rank", r->rank},
                   {"node_rank", r->node_rank},     {"local_rank", r->local_rank},
                   {"num_ongoing", r->num_ongoing}, {"expires_in_ms", r->expires_in_ms}};
    struct json_out o;
    json_out_init(&o, to);
    json_out_object(&o);
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        json_out_key(&o, texts[i].key);
        json_out_str(&o, texts[i].value);
    }
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        json_out_key(&o, numbers[i].key);
        json_out_int(&o, numbers[i].value);
    }
    json_out_end_object(&o);
}

/* An optional text of the body; -1 when it is something else. */
static int text_field(const struct json *body, const char *name, const char **to, struct api_error *e)
{
    const struct json *v = json_get(body, name);
    *to = json_text(v);
    if (json_kind(v) <= JK_NULL || (*to && strlen(*to) == json_len(v))) return 0;
    return api_fail(e, API_BAD_VALUE, name, "`%s` must be a string without NUL characters.", name);
}

static int read_fields(const struct exchange *x, const struct json *body, struct route_ask *about,
                       struct api_error *e)
{
    if (json_kind(body) != JK_OBJECT)
        return api_fail(e, API_BAD_VALUE, NULL, "The body must be a JSON object, but is %s.",
                        json_kind_name(json_kind(body)));
    const struct json *count = json_get(body, "count");
    const char *model, *session, *user;
    if (text_field(body, "model", &model, e) < 0 || text_field(body, "session_id", &session, e) < 0 ||
        text_field(body, "user", &user, e) < 0)
        return -1;
    if (json_kind(count) > JK_NULL && json_int(count, 0) != 1)
        return api_fail(e, API_UNSUPPORTED, "count",
                        "A call makes one reservation: `count` must be 1 or absent.");
    *about = session_of((const char *const[]){session, exchange_header(x, "X-Session-ID"), user}, 3);
    return model_check(x->in, model, NULL, e);
}

int answer_reserve(struct exchange *x)
{
    struct api_error e;
    struct route_ask about = session_of((const char *const[]){exchange_header(x, "X-Session-ID")}, 1);
    if (x->body.len) {
        struct json *body = body_read(x, &e);
        int rc = body ? read_fields(x, body, &about, &e) : -1;
        json_drop(body);
        if (rc < 0) return reply_error(x, &e);
    }
    ask_open(x);
    int rc = x->in->spec.agent.reserve(x->in->spec.agent.agent, x->ask->id, &about);
    if (rc == 0) return reserve_go_on(x);
    bool draining = atomic_load(&x->in->state) == IN_DRAINING;
    if (rc == ERR_STATE)
        api_fail(&e, API_UNAVAILABLE, NULL,
                 draining ? "This node is being drained."
                          : "No replica takes reservations now. Try again later.");
    else
        api_fail(&e, API_INTERNAL, NULL, "The server has no random numbers for an id.");
    e.close = draining;
    return reply_error(x, &e);
}

static bool client_left(const struct exchange *x)
{
    struct pollfd p = {.fd = exchange_fd(x), .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

int reserve_go_on(struct exchange *x)
{
    struct ask *a = x->ask;
    struct api_error e;
    pthread_mutex_lock(&x->in->asks.lock);
    bool answered = a->answered, aborted = atomic_load(&x->in->state) == IN_ABORTED;
    if (!answered && !aborted) {
        a->sleeping = true;
        exchange_suspend(x);
    }
    pthread_mutex_unlock(&x->in->asks.lock);
    if (!answered && !aborted) return 0;
    if (!answered) { /* it may be at any time: nothing of it is looked at */
        api_fail(&e, API_UNAVAILABLE, NULL, "%s", x->in->abort_why);
        e.close = true;
        return reply_error(x, &e);
    }
    if (a->granted && client_left(x)) return -1;
    if (a->granted) {
        struct buf body = {0};
        write_reservation(x->in, &a->reservation, &body);
        return reply_json(x, 201, &body);
    }
    api_fail(&e, API_UNAVAILABLE, NULL, "%s", a->why);
    e.retry_after_s = MAX_OF(a->retry_after_s, 1u);
    return reply_error(x, &e);
}

/* GET tells what became of it; DELETE gives it back and tells: `released`, now or before, or what it was already. */
int answer_reservation(struct exchange *x)
{
    const struct ingress_agent *agent = &x->in->spec.agent;
    bool release = strcmp(x->method, "DELETE") == 0;
    struct ingress_reservation r;
    struct reservation_id id;
    if (!reservation_id_read(x->tail, &id) || agent->reservation(agent->agent, &id, release, &r) < 0) {
        struct api_error e;
        reservation_fail(ERR_NOT_FOUND, &e);
        e.param[0] = 0;
        return reply_error(x, &e);
    }
    struct buf body = {0};
    write_reservation(x->in, &r, &body);
    return reply_json(x, 200, &body);
}
