/* The HTTP library alone, as the limit beside which the job's requests/s are read: libmicrohttpd with the job's mode
 * and number of threads answers every request with the same small body, and POST /v1/completions with a stream of EVENTS events, each in
 * a chunk, as a server with nothing behind it would. Prints its port, ends when stdin does.
 *   bare_http THREADS */
#include <arpa/inet.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EVENTS = 100 };

static ssize_t next_event(void *sent, uint64_t at, char *to, size_t room)
{
    static const char event[] =
        "data: {\"id\":\"cmpl-0123456789abcdef\",\"object\":\"text_completion\",\"created\":1700000000,"
        "\"model\":\"demo-model\",\"choices\":[{\"index\":0,\"text\":\" a\",\"logprobs\":null,"
        "\"finish_reason\":null}]}\n\n";
    static const char last[] =
        "data: {\"choices\":[],\"usage\":{\"completion_tokens\":100}}\n\ndata: [DONE]\n\n";
    int *n = sent;
    const char *text = *n < EVENTS ? event : last;
    size_t len = *n < EVENTS ? sizeof event - 1 : sizeof last - 1;
    (void)at;
    if (*n > EVENTS || len > room) return MHD_CONTENT_READER_END_OF_STREAM;
    ++*n;
    memcpy(to, text, len);
    return (ssize_t)len;
}

static enum MHD_Result stream(struct MHD_Connection *connection)
{
    int *sent = calloc(1, sizeof *sent);
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, next_event, sent, free);
    MHD_add_response_header(r, "Content-Type", "text/event-stream");
    enum MHD_Result queued = MHD_queue_response(connection, MHD_HTTP_OK, r);
    MHD_destroy_response(r);
    return queued;
}

static enum MHD_Result answer(void *arg, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *data, size_t *size,
                              void **state)
{
    (void)method, (void)version, (void)data;
    static int seen;
    if (!*state) { /* the first call of a request has only its head */
        *state = &seen;
        return MHD_YES;
    }
    if (*size) {
        *size = 0;
        return MHD_YES;
    }
    if (strcmp(url, "/v1/completions") == 0) return stream(connection);
    return MHD_queue_response(connection, MHD_HTTP_OK, arg);
}

int main(int argc, char **argv)
{
    static char body[] = "{\"status\": \"ok\"}\n";
    unsigned threads = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
    struct sockaddr_in at = {.sin_family = AF_INET};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct MHD_Response *response =
        MHD_create_response_from_buffer(strlen(body), body, MHD_RESPMEM_PERSISTENT);
    MHD_add_response_header(response, "Content-Type", "application/json");
    /* A pool of one is refused: one thread is the mode without a pool. */
    struct MHD_OptionItem pool[] = {
        {threads > 1 ? MHD_OPTION_THREAD_POOL_SIZE : MHD_OPTION_END, threads, NULL},
        {MHD_OPTION_END, 0, NULL}};
    struct MHD_Daemon *d = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ITC, 0, NULL, NULL, answer, response, MHD_OPTION_SOCK_ADDR,
        &at, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)32 << 10, MHD_OPTION_ARRAY, pool, MHD_OPTION_END);
    if (!d) {
        fprintf(stderr, "bare_http: cannot start\n");
        return 1;
    }
    printf("%u\n", (unsigned)MHD_get_daemon_info(d, MHD_DAEMON_INFO_BIND_PORT)->port);
    fflush(stdout);
    char byte;
    while (read(STDIN_FILENO, &byte, 1) > 0) {}
    MHD_stop_daemon(d);
    MHD_destroy_response(response);
    return 0;
}
