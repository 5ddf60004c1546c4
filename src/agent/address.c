#include "agent/address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static bool same_address(const struct sockaddr *a, const struct sockaddr *b)
{
    if (!a || !b || a->sa_family != b->sa_family) return false;
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr ==
               ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return a->sa_family == AF_INET6 && !memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr,
                                               &((const struct sockaddr_in6 *)b)->sin6_addr, 16);
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET) return ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
    return a->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

static void add_text(struct buf *to, const struct sockaddr *a)
{
    char text[INET6_ADDRSTRLEN] = "";
    const void *at = a->sa_family == AF_INET ? (const void *)&((const struct sockaddr_in *)a)->sin_addr
                                             : (const void *)&((const struct sockaddr_in6 *)a)->sin6_addr;
    if (a->sa_family != AF_INET && a->sa_family != AF_INET6) return;
    inet_ntop(a->sa_family, at, text, sizeof text);
    if (!to->len || !strstr(to->data, text)) buf_printf(to, "%s%s", to->len ? ", " : "", text);
}

/* own: the addresses here but loopback, as text. */
static bool find_own(const struct addrinfo *wanted, struct buf *own)
{
    struct ifaddrs *all = NULL;
    bool found = false;
    for (const struct addrinfo *w = wanted; w; w = w->ai_next) found |= is_loopback(w->ai_addr);
    if (getifaddrs(&all)) return found;
    for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
        if (!i->ifa_addr) continue;
        if (!is_loopback(i->ifa_addr)) add_text(own, i->ifa_addr);
        for (const struct addrinfo *w = wanted; w; w = w->ai_next)
            found |= same_address(i->ifa_addr, w->ai_addr);
    }
    freeifaddrs(all);
    return found;
}

int address_check_own(const char *name, const char *where, struct error *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *wanted = NULL;
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    int rc = getaddrinfo(name, NULL, &hints, &wanted);
    if (rc)
        return error_set(err, ERR_INPUT, where, "%s is no address and no name that %s can resolve: %s", name,
                         host, gai_strerror(rc));
    struct buf own = {0}, its = {0};
    bool found = find_own(wanted, &own);
    for (const struct addrinfo *w = wanted; w; w = w->ai_next) add_text(&its, w->ai_addr);
    if (!found)
        error_set(err, ERR_INPUT, where,
                  "%s (%s) is no address of the head node: rank 0 runs on %s (%s). Name that one, or let the "
                  "list of "
                  "hosts begin with %s",
                  name, its.len ? its.data : "?", host, own.len ? own.data : "no address", name);
    freeaddrinfo(wanted);
    buf_release(&own);
    buf_release(&its);
    return found ? 0 : ERR_INPUT;
}

bool address_is_loopback(const char *name)
{
    return strcmp(name, "localhost") == 0 || strcmp(name, "::1") == 0 || strncmp(name, "127.", 4) == 0;
}
