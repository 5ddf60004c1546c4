/* An HTTP client for load: keeps N requests in flight on N connections to 127.0.0.1, in one thread, and prints one JSON
 * object: how many, how long, tokens (as the answers' usage says), latencies.
 *   load --port P --path /health --connections 64 --seconds 2
 *   load --port P --path /v1/completions --body FILE --connections 32 --requests 32 --tokens 256
 *   load --port P --path /v1/completions --body FILE --connections 512 --rate 300 --seconds 5
 * --rate: an open loop: requests start at random times (Poisson), however many are still unanswered, on any idle connection; 429 and
 * 503 count as refused; none idle: not sent. --within MS: counts answers whose first byte came in that time. With --tokens an answer that reports another number of completion tokens has failed. Ends with 0 when no request failed. */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 1024, HEAD_MAX = 8192, MAX_SAMPLES = 4 << 20, USAGE_LEN = 20 };
static const char usage_key[USAGE_LEN + 1] = "\"completion_tokens\":";

enum where { IN_HEAD, IN_BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, COMPLETE };
struct connection {
    int fd;
    enum where where;
    char head[HEAD_MAX];
    size_t n_head;
    uint64_t left;      /* bytes of the body or of the chunk */
    bool chunked, last; /* last: the server closes behind this answer */
    bool sized;         /* a chunk size has digits */
    int status;
    uint32_t line; /* bytes of a trailer line */
    /* the answer's usage, found on the way */
    uint32_t matched;
    bool digits;
    uint64_t number;
    int64_t tokens; /* -1: none seen */
    double sent, first;
};

struct samples {
    float *v;
    size_t n;
};

static struct {
    int port, connections;
    const char *path, *body_file;
    double seconds, timeout, rate, within_ms;
    long requests, tokens;
    char *request;
    size_t request_len;
    struct connection *all;
    long started, finished, failed;
    long refused, unsent, n_idle; /* --rate */
    long within;                  /* --within */
    struct connection **idle;
    uint64_t total_tokens, bytes;
    struct samples latency, first;
    double begin, end;
    char why[200];
} load = {.connections = 1, .timeout = 60, .tokens = -1};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

_Noreturn static void give_up(const char *what)
{
    printf("{\"error\": \"%s: %s\"}\n", what, errno ? strerror(errno) : "as asked");
    exit(2);
}

static void add_sample(struct samples *s, double seconds)
{
    if (s->n < MAX_SAMPLES) s->v[s->n++] = (float)(seconds * 1e3);
}

/* ---- one connection ------------------------------------------------------------------------------------------*/
static void connect_to_server(struct connection *c, int epoll)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)load.port)};
    int one = 1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to)) give_up("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e)) give_up("epoll_ctl");
}

/* Requests are small beside a socket's buffer, so that a blocking send does not wait. */
static void send_request(struct connection *c)
{
    c->where = IN_HEAD;
    c->n_head = 0;
    c->tokens = -1;
    c->matched = 0;
    c->digits = false;
    c->first = 0;
    c->sent = now();
    load.started++;
    if (send(c->fd, load.request, load.request_len, MSG_NOSIGNAL) != (ssize_t)load.request_len)
        give_up("send");
}

/* Looks for `"completion_tokens": NUMBER` in what passes; the last one counts. */
static void look_for_usage(struct connection *c, const char *data, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char b = data[i];
        if (c->matched == USAGE_LEN) {
            if (b >= '0' && b <= '9') {
                c->number = c->digits ? c->number * 10 + (uint64_t)(b - '0') : (uint64_t)(b - '0');
                c->digits = true;
                c->tokens = (int64_t)c->number;
                continue;
            }
            if (b == ' ' && !c->digits) continue;
            c->matched = 0;
            c->digits = false;
        }
        c->matched = b == usage_key[c->matched] ? c->matched + 1 : b == '"';
    }
}

static void body_bytes(struct connection *c, const char *data, size_t n)
{
    if (n && c->first == 0) c->first = now();
    look_for_usage(c, data, n);
}

static void read_head(struct connection *c)
{
    c->head[c->n_head] = 0;
    char *length = strcasestr(c->head, "\r\ncontent-length:");
    c->status = strncmp(c->head, "HTTP/1.1 ", 9) ? 0 : atoi(c->head + 9);
    c->chunked = strcasestr(c->head, "\r\ntransfer-encoding: chunked") != NULL;
    c->last = strcasestr(c->head, "\r\nconnection: close") != NULL;
    c->left = length ? strtoull(length + 17, NULL, 10) : 0;
    c->sized = false;
    if (c->chunked) {
        c->left = 0;
        c->where = CHUNK_SIZE;
    } else {
        c->where = c->left ? IN_BODY : COMPLETE;
    }
}

static int hex(char b)
{
    if (b >= '0' && b <= '9') return b - '0';
    b |= 0x20;
    return b >= 'a' && b <= 'f' ? b - 'a' + 10 : -1;
}

/* A byte of what frames the chunks. */
static void chunk_byte(struct connection *c, char b)
{
    if (c->where == CHUNK_SIZE) {
        if (hex(b) >= 0) {
            c->left = c->left * 16 + (uint64_t)hex(b);
            c->sized = true;
        } else if (b == '\n' && c->sized) {
            c->where = c->left ? CHUNK_DATA : TRAILER;
            c->line = 0;
        }
    } else if (c->where == CHUNK_END) {
        if (b != '\n') return;
        c->where = CHUNK_SIZE;
        c->left = 0;
        c->sized = false;
    } else { /* TRAILER: ends with an empty line */
        if (b == '\n' && c->line == 0) c->where = COMPLETE;
        if (b == '\n')
            c->line = 0;
        else if (b != '\r')
            c->line++;
    }
}

static void take_bytes(struct connection *c, const char *data, size_t n)
{
    for (size_t i = 0; i < n && c->where != COMPLETE;) {
        if (c->where == IN_HEAD) {
            if (c->n_head + 1 >= HEAD_MAX) give_up("a head of more than 8 KB");
            c->head[c->n_head++] = data[i++];
            if (c->n_head >= 4 && !memcmp(c->head + c->n_head - 4, "\r\n\r\n", 4)) read_head(c);
        } else if (c->where == IN_BODY || c->where == CHUNK_DATA) {
            size_t take = n - i < c->left ? n - i : (size_t)c->left;
            body_bytes(c, data + i, take);
            c->left -= take;
            i += take;
            if (!c->left) c->where = c->where == IN_BODY ? COMPLETE : CHUNK_END;
        } else {
            chunk_byte(c, data[i++]);
        }
    }
}

static void finish(struct connection *c, const char *broken)
{
    double t = now();
    bool wrong = load.tokens >= 0 && c->tokens != load.tokens;
    load.finished++;
    load.end = t;
    if (load.rate > 0 && !broken && (c->status == 429 || c->status == 503)) {
        load.refused++;
        return;
    }
    if (broken || c->status != 200 || wrong) {
        if (!load.failed++)
            snprintf(load.why, sizeof load.why, "%s, status %d, completion tokens %lld",
                     broken ? broken : "complete answer", c->status, (long long)c->tokens);
        return;
    }
    if (c->tokens > 0) load.total_tokens += (uint64_t)c->tokens;
    add_sample(&load.latency, t - c->sent);
    if (c->first > 0) add_sample(&load.first, c->first - c->sent);
    load.within += c->first > 0 && (c->first - c->sent) * 1e3 <= load.within_ms;
}

static bool more(double t)
{
    if (load.requests) return load.started < load.requests;
    return t - load.begin < load.seconds;
}

/* Returns false when the connection has nothing more to do. */
static bool on_readable(struct connection *c, int epoll)
{
    static char buffer[1 << 16];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (n > 0) {
        load.bytes += (uint64_t)n;
        take_bytes(c, buffer, (size_t)n);
        if (c->where != COMPLETE) return true;
    }
    finish(c, n > 0 ? NULL : "connection closed early");
    bool again = load.rate <= 0 && more(now());
    if (n <= 0 || c->last || !again) {
        close(c->fd);
        c->fd = -1;
        if (again || load.rate > 0) connect_to_server(c, epoll);
    }
    if (again) send_request(c);
    return again;
}

/* Seconds to the next arrival: exponential, the same row in every run. */
static double gap(void)
{
    static uint64_t state = 0x9E3779B97F4A7C15u;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return -log(((double)(state >> 11) + 1) * 0x1p-53) / load.rate;
}

static void arrive(void)
{
    if (load.n_idle)
        send_request(load.idle[--load.n_idle]);
    else
        load.unsent++;
}

static void run_open(void)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[64];
    for (int i = 0; i < load.connections; i++) {
        connect_to_server(&load.all[i], epoll);
        load.idle[load.n_idle++] = &load.all[i];
    }
    load.begin = now();
    for (double next = load.begin + gap(), t = now(), last = load.begin + load.seconds;;) {
        for (; next <= t && next < last; next += gap()) arrive();
        if (next >= last && load.n_idle == load.connections) return;
        if (t > load.begin + load.timeout) {
            errno = ETIMEDOUT;
            give_up("the load");
        }
        double until = next < last ? next - t : 0.1;
        int n = epoll_wait(epoll, events, 64, until < 0 ? 0 : (int)(until * 1e3));
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            long before = load.finished;
            on_readable(c, epoll);
            if (load.finished > before) load.idle[load.n_idle++] = c;
        }
        t = now();
    }
}

static void run(void)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC), open = 0;
    struct epoll_event events[64];
    for (int i = 0; i < load.connections; i++) connect_to_server(&load.all[i], epoll);
    load.begin = now();
    for (int i = 0; i < load.connections; i++) {
        if (load.requests && load.started >= load.requests) {
            close(load.all[i].fd);
            continue;
        }
        send_request(&load.all[i]);
        open++;
    }
    while (open > 0) {
        double left = load.begin + load.timeout - now();
        if (left <= 0) {
            errno = ETIMEDOUT;
            give_up("the load");
        }
        int n = epoll_wait(epoll, events, 64, (int)(left * 1e3) + 1);
        for (int i = 0; i < n; i++)
            if (!on_readable(events[i].data.ptr, epoll)) open--;
    }
}

/* ---- what is printed -----------------------------------------------------------------------------------------*/
static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, struct samples *s)
{
    qsort(s->v, s->n, sizeof *s->v, by_value);
    if (s->n)
        printf(", \"%s\": {\"min\": %.4f, \"p50\": %.4f, \"p90\": %.4f, \"p99\": %.4f, \"max\": %.4f}", name,
               s->v[0], s->v[s->n / 2], s->v[s->n * 9 / 10], s->v[s->n * 99 / 100], s->v[s->n - 1]);
}

static void print_all(void)
{
    printf("{\"requests\": %ld, \"failed\": %ld, \"seconds\": %.6f, \"tokens\": %llu, \"bytes\": %llu",
           load.finished, load.failed, load.end - load.begin, (unsigned long long)load.total_tokens,
           (unsigned long long)load.bytes);
    if (load.rate > 0) printf(", \"refused\": %ld, \"unsent\": %ld", load.refused, load.unsent);
    if (load.within_ms > 0) printf(", \"within\": %ld", load.within);
    print_samples("latency_ms", &load.latency);
    print_samples("first_ms", &load.first);
    if (load.failed) printf(", \"error\": \"%s\"", load.why);
    printf("}\n");
}

/* ---- start ---------------------------------------------------------------------------------------------------*/
static void make_request(void)
{
    char *body = NULL;
    size_t n = 0;
    if (load.body_file) {
        FILE *in = fopen(load.body_file, "rb"), *out = open_memstream(&body, &n);
        int b;
        if (!in || !out) give_up(load.body_file);
        while ((b = getc(in)) != EOF) putc(b, out);
        fclose(in);
        fclose(out);
    }
    FILE *out = open_memstream(&load.request, &load.request_len);
    fprintf(out, "%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\n", body ? "POST" : "GET", load.path);
    if (body) fprintf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", n);
    fprintf(out, "\r\n");
    if (body) fwrite(body, 1, n, out);
    fclose(out);
    free(body);
}

static void read_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", 1, 0, 'p'},
        {"path", 1, 0, 'u'},
        {"body", 1, 0, 'b'},
        {"seconds", 1, 0, 's'},
        {"requests", 1, 0, 'r'},
        {"connections", 1, 0, 'c'},
        {"timeout", 1, 0, 't'},
        {"tokens", 1, 0, 'k'},
        {"rate", 1, 0, 'R'},
        {"within", 1, 0, 'w'},
        {0},
    };
    for (int o; (o = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        if (o == 'p') load.port = atoi(optarg);
        if (o == 'u') load.path = optarg;
        if (o == 'b') load.body_file = optarg;
        if (o == 's') load.seconds = atof(optarg);
        if (o == 'r') load.requests = atol(optarg);
        if (o == 'c') load.connections = atoi(optarg);
        if (o == 't') load.timeout = atof(optarg);
        if (o == 'R') load.rate = atof(optarg);
        if (o == 'w') load.within_ms = atof(optarg);
        if (o == 'k') load.tokens = atol(optarg);
        if (o == '?') exit(2);
    }
    if (!load.port || !load.path || (!load.seconds && !load.requests) || load.connections < 1 ||
        load.connections > MAX_CONNECTIONS) {
        fprintf(stderr, "load --port P --path PATH [--body FILE] --seconds S | --requests R "
                        "[--connections N] [--timeout S] [--tokens N] [--rate R] [--within MS]\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    make_request();
    load.all = calloc((size_t)load.connections, sizeof *load.all);
    load.idle = calloc((size_t)load.connections, sizeof *load.idle);
    load.latency.v = malloc(MAX_SAMPLES * sizeof(float));
    load.first.v = malloc(MAX_SAMPLES * sizeof(float));
    if (!load.all || !load.idle || !load.latency.v || !load.first.v) give_up("memory");
    if (load.rate > 0)
        run_open();
    else
        run();
    print_all();
    return load.failed ? 1 : 0;
}
