/* Doorbells: a datagram socket per rank in the node, and one more between nodes. A lost or forged bell costs a little time, never
 * correctness: the receiver only looks at MPI sooner. */
#include "wire/wire_inner.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { NONCE = 16, MAX_ADDRESSES = 4, DRAIN_MAX = 64 };
static const u64 bell_gap_ns =
    50 * NS_PER_US; /* between nodes, of bells that keep their receiver awake for longer */
static const u64 await_ns =
    10 * NS_PER_MS; /* packets that were announced come, but for those of ranks that died */

/* What a rank tells the others about its sockets. */
struct bell_card {
    i32 code; /* 0, or why there are none */
    u16 port, n_addresses;
    u32 addresses[MAX_ADDRESSES], masks[MAX_ADDRESSES]; /* network byte order */
    u8 nonce[NONCE];                                    /* rank 0's counts */
    char message[256];
};

/* What travels between nodes. */
struct bell_word {
    u8 nonce[NONCE];
    u32 from, kind; /* rank; BELL_ */
    u32 posted;     /* BELL_PACKETS: of this pair, so far */
};
enum { BELL_LOOK, BELL_PACKETS };

struct bell_target {
    struct sockaddr_in to[MAX_ADDRESSES]; /* of a rank on another node */
    u32 n;
    _Atomic u64 rung_ns;
};

/* A rank's word in memory that the ranks of its node share: 1 while it sleeps, or is about to. */
struct sleeper {
    _Alignas(CACHE_LINE) _Atomic u32 asleep;
};

struct bell {
    int local, remote, fd; /* AF_UNIX; UDP or -1; what the main loop waits on */
    char dir[PATH_LEN];
    char own_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    u8 nonce[NONCE];
    struct bell_target *targets; /* [size] */
    struct sleeper *sleepers;    /* [node_size], by local rank */
    u64 listen_until_ns, await_until_ns;
};

static int bell_path(struct sockaddr_un *a, const char *dir, u32 rank, struct error *err)
{
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    int n = snprintf(a->sun_path, sizeof a->sun_path, "%s/bell.%u", dir, rank);
    if (n > 0 && (size_t)n < sizeof a->sun_path) return 0;
    return error_set(err, ERR_INPUT, dir,
                     "the path of a doorbell would be %d bytes long, a socket's may be %zu: "
                     "choose a shorter folder (run_dir, TMPDIR)",
                     n, sizeof a->sun_path - 1);
}

static int check_folder(const char *dir, struct error *err)
{
    struct stat st;
    if (lstat(dir, &st)) return error_errno(err, dir, "folder of the doorbells");
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077))
        return error_set(err, ERR_INPUT, dir, "must be a folder of this user with mode 0700");
    return 0;
}

static int open_local(struct wire *w, struct bell *b, const char *dir, struct error *err)
{
    struct sockaddr_un a;
    int rc = bell_path(&a, dir, w->size - 1, err); /* the longest name, so that all ranks of a node agree */
    if (!rc) rc = check_folder(dir, err);
    if (!rc) rc = bell_path(&a, dir, w->rank, err);
    if (rc) return rc;
    b->local = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (b->local < 0) return error_errno(err, dir, "socket");
    unlink(a.sun_path);
    if (bind(b->local, (struct sockaddr *)&a, sizeof a)) return error_errno(err, a.sun_path, "bind");
    strcpy(b->own_path, a.sun_path);
    strcpy(b->dir, dir);
    return 0;
}

static int open_remote(struct bell *b, u16 *port, struct error *err)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    socklen_t len = sizeof a;
    b->remote = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (b->remote < 0 || bind(b->remote, (struct sockaddr *)&a, sizeof a) ||
        getsockname(b->remote, (struct sockaddr *)&a, &len))
        return error_errno(err, "", "UDP socket of the doorbell");
    *port = a.sin_port;
    return 0;
}

static void list_addresses(struct bell_card *card)
{
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all)) return;
    for (struct ifaddrs *i = all; i && card->n_addresses < MAX_ADDRESSES; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET || !i->ifa_netmask) continue;
        if (!(i->ifa_flags & IFF_UP) || (i->ifa_flags & IFF_LOOPBACK)) continue;
        card->addresses[card->n_addresses] = ((struct sockaddr_in *)i->ifa_addr)->sin_addr.s_addr;
        card->masks[card->n_addresses++] = ((struct sockaddr_in *)i->ifa_netmask)->sin_addr.s_addr;
    }
    freeifaddrs(all);
}

/* The first rank of a node makes the file, the others open it when that is told, and it goes when all have. */
static int map_sleepers(struct wire *w, struct bell *b, const char *path, int flags, struct error *err)
{
    size_t bytes = w->node_size * sizeof *b->sleepers;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
    if (fd < 0) return error_errno(err, path, "cannot open it");
    errno = flags ? posix_fallocate(fd, 0, (off_t)bytes) : 0; /* it tells why by its result */
    int rc = errno ? error_errno(err, path, "no room for %zu bytes", bytes) : 0;
    void *memory = rc ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (!rc && memory == MAP_FAILED) rc = error_errno(err, path, "cannot map it");
    close(fd);
    if (!rc) b->sleepers = memory;
    return rc;
}

/* One descriptor for the main loop, whatever is behind it. */
static int join_fds(struct bell *b, struct error *err)
{
    b->fd = b->local;
    if (b->remote < 0) return 0;
    b->fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN};
    if (b->fd < 0 || epoll_ctl(b->fd, EPOLL_CTL_ADD, b->local, &e) ||
        epoll_ctl(b->fd, EPOLL_CTL_ADD, b->remote, &e))
        return error_errno(err, "", "epoll of the doorbells");
    return 0;
}

/* The addresses of a rank that lie in a network of ours; all of them when none does. A bell goes to each of them. */
static void choose_addresses(struct bell_target *t, const struct bell_card *mine, const struct bell_card *its)
{
    for (int any = 0; any < 2 && !t->n; any++)
        for (u32 i = 0; i < MIN_OF(its->n_addresses, MAX_ADDRESSES); i++) {
            bool near = any;
            for (u32 k = 0; k < mine->n_addresses && !near; k++)
                near = !((its->addresses[i] ^ mine->addresses[k]) & mine->masks[k]);
            if (!near) continue;
            t->to[t->n++] = (struct sockaddr_in){
                .sin_family = AF_INET, .sin_port = its->port, .sin_addr.s_addr = its->addresses[i]};
        }
}

static int check_cards(const struct wire *w, struct bell_card *cards, struct error *err)
{
    for (u32 r = 0; r < w->size; r++) {
        cards[r].message[sizeof cards[r].message - 1] = 0;
        if (cards[r].code)
            return error_set(err, cards[r].code, "doorbell", "rank %u (%s): %s", r, w->peers[r].host,
                             cards[r].message);
    }
    return 0;
}

static int exchange(struct wire *w, struct bell *b, struct bell_card *mine, struct error *err)
{
    struct bell_card *cards = mem_zero(w->size, sizeof *cards);
    int rc = wire_allgather(w, mine, sizeof *mine, cards, err);
    if (!rc) rc = check_cards(w, cards, err);
    memcpy(b->nonce, cards[0].nonce, NONCE);
    for (u32 r = 0; !rc && r < w->size; r++) {
        if (wire_same_node(w, r)) continue;
        choose_addresses(&b->targets[r], mine, &cards[r]);
        if (!b->targets[r].n)
            log_warning(
                "rank %u (%s) has no IPv4 address for doorbells: messages to it arrive up to 100 ms later", r,
                w->peers[r].host);
    }
    free(cards);
    return rc;
}

/* Collective: every rank says whether it could. */
static int all_could(struct wire *w, int rc, const struct error *why, struct error *err)
{
    struct bell_card mine = {.code = rc}, *cards = mem_zero(w->size, sizeof *cards);
    if (rc) snprintf(mine.message, sizeof mine.message, "%.150s: %.100s", why->where, why->message);
    rc = wire_allgather(w, &mine, sizeof mine, cards, err);
    if (!rc) rc = check_cards(w, cards, err);
    free(cards);
    return rc;
}

static int share_sleepers(struct wire *w, struct bell *b, const char *dir, struct error *err)
{
    char path[PATH_LEN + 16];
    struct error why = {0};
    bool first = w->peers[w->rank].local_rank == 0;
    snprintf(path, sizeof path, "%s/sleepers", dir);
    if (first) unlink(path);
    int rc = first ? map_sleepers(w, b, path, O_CREAT | O_EXCL, &why) : 0;
    rc = all_could(w, rc, &why, err);
    if (!rc) {
        if (!first) rc = map_sleepers(w, b, path, 0, &why);
        rc = all_could(w, rc, &why, err);
    }
    if (first) unlink(path);
    return rc;
}

int wire_bells(struct wire *w, const char *dir, struct error *err)
{
    BUG_ON(w->bell != NULL);
    struct bell *b = mem_zero(1, sizeof *b);
    b->local = b->remote = b->fd = -1;
    b->targets = mem_zero(w->size, sizeof *b->targets);
    struct bell_card card = {0};
    struct error why = {0};
    int rc = open_local(w, b, dir, &why);
    if (!rc && w->n_nodes > 1) {
        rc = open_remote(b, &card.port, &why);
        list_addresses(&card);
    }
    if (!rc) rc = join_fds(b, &why);
    if (!rc) rc = random_bytes(card.nonce, NONCE, &why);
    card.code = rc;
    if (rc) snprintf(card.message, sizeof card.message, "%.150s: %.100s", why.where, why.message);
    w->bell = b;
    rc = exchange(w, b, &card, err);
    if (!rc) rc = share_sleepers(w, b, dir, err);
    if (rc) bell_release(w);
    return rc;
}

void bell_release(struct wire *w)
{
    struct bell *b = w ? w->bell : NULL;
    if (!b) return;
    if (b->own_path[0]) unlink(b->own_path);
    if (b->fd >= 0 && b->fd != b->local) close(b->fd);
    if (b->local >= 0) close(b->local);
    if (b->remote >= 0) close(b->remote);
    if (b->sleepers) munmap(b->sleepers, w->node_size * sizeof *b->sleepers);
    free(b->targets);
    free(b);
    w->bell = NULL;
}

int wire_fd(const struct wire *w)
{
    return w->bell ? w->bell->fd : -1;
}

/* Once for each sleep: who rings takes the word away. The fence stands between what was sent, by stores to shared memory, and this
 * look; its pair is in wire_sleep. */
static void ring_sleeper(struct wire *w, u32 rank)
{
    struct bell *b = w->bell;
    struct sockaddr_un a;
    atomic_thread_fence(memory_order_seq_cst);
    _Atomic u32 *asleep = &b->sleepers[w->peers[rank].local_rank].asleep;
    if (!atomic_load_explicit(asleep, memory_order_relaxed) || !atomic_exchange(asleep, 0)) {
        atomic_fetch_add_explicit(&w->bells_saved, 1, memory_order_relaxed);
        return;
    }
    atomic_fetch_add_explicit(&w->bells_sent, 1, memory_order_relaxed);
    if (bell_path(&a, b->dir, rank, NULL)) return;
    /* a full queue or a rank that has left: it is awake, or does not matter */
    (void)!sendto(b->local, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&a, sizeof a);
}

void wire_sleep(struct wire *w, bool sleeps)
{
    if (!w->bell) return;
    w->asleep = sleeps;
    atomic_store(&w->bell->sleepers[w->peers[w->rank].local_rank].asleep, sleeps);
    atomic_thread_fence(memory_order_seq_cst);
}

static void ring_far(struct wire *w, u32 rank, u32 kind, u32 posted)
{
    struct bell *b = w->bell;
    const struct bell_target *t = &b->targets[rank];
    struct bell_word word = {.from = w->rank, .kind = kind, .posted = posted};
    memcpy(word.nonce, b->nonce, NONCE);
    atomic_fetch_add_explicit(&w->bells_sent, 1, memory_order_relaxed);
    for (u32 i = 0; i < t->n; i++)
        (void)!sendto(b->remote, &word, sizeof word, MSG_DONTWAIT | MSG_NOSIGNAL,
                      (struct sockaddr *)&t->to[i], sizeof t->to[i]);
}

void wire_ring(struct wire *w, u32 rank)
{
    struct bell *b = w->bell;
    if (!b || rank == w->rank || w->states[rank].forgotten) return;
    struct bell_target *t = &b->targets[rank];
    if (wire_same_node(w, rank)) {
        ring_sleeper(w, rank);
        return;
    }
    u64 now = clock_ns();
    if (now - atomic_load_explicit(&t->rung_ns, memory_order_relaxed) < bell_gap_ns) {
        atomic_fetch_add_explicit(&w->bells_saved, 1, memory_order_relaxed);
        return;
    }
    atomic_store_explicit(&t->rung_ns, now, memory_order_relaxed);
    ring_far(w, rank, BELL_LOOK, 0);
}

/* To another node when the turn that sent ends: one bell for all that it had. */
void bell_packets(struct wire *w, u32 rank)
{
    struct peer_state *s = &w->states[rank];
    if (!w->bell || s->forgotten) return;
    if (wire_same_node(w, rank)) {
        ring_sleeper(w, rank);
    } else if (!s->owed) {
        s->owed = true;
        w->owed[w->n_owed++] = rank;
    }
}

void bell_owed(struct wire *w)
{
    for (; w->n_owed; w->n_owed--) {
        u32 rank = w->owed[w->n_owed - 1];
        struct peer_state *s = &w->states[rank];
        s->owed = false;
        if (!s->forgotten) ring_far(w, rank, BELL_PACKETS, s->posted);
    }
}

void bell_packet_came(struct wire *w, struct peer_state *s)
{
    if (!s->awaited || (i32)(s->announced - s->recv_seq) > 0) return;
    s->awaited = false;
    w->n_awaited--;
}

/* Announced packets may be here already, and bells come in any order. */
static void await(struct wire *w, u32 from, u32 posted)
{
    struct peer_state *s = &w->states[from];
    if (s->forgotten || (i32)(posted - s->recv_seq) <= 0 || (s->awaited && (i32)(posted - s->announced) <= 0))
        return;
    s->announced = posted;
    w->n_awaited += !s->awaited;
    s->awaited = true;
    w->bell->await_until_ns = clock_ns() + await_ns;
}

static void hear_far(struct wire *w)
{
    struct bell *b = w->bell;
    struct bell_word word;
    for (int i = 0; i < DRAIN_MAX; i++) {
        u8 got[sizeof word + 1];
        ssize_t n = recv(b->remote, got, sizeof got, MSG_DONTWAIT);
        if (n < 0) return;
        memcpy(&word, got, sizeof word);
        bool genuine = n == sizeof word && !memcmp(word.nonce, b->nonce, NONCE) && word.from < w->size &&
                       word.from != w->rank && word.kind <= BELL_PACKETS;
        w->counts.bells_heard += genuine;
        w->counts.bells_foreign += !genuine;
        if (!genuine) continue;
        if (word.kind == BELL_PACKETS)
            await(w, word.from, word.posted);
        else
            b->listen_until_ns = clock_ns() + WIRE_BELL_NS;
    }
}

static bool hear_near(struct wire *w) /* only this user can reach it */
{
    bool heard = false;
    char got;
    for (int i = 0; i < DRAIN_MAX && recv(w->bell->local, &got, 1, MSG_DONTWAIT) >= 0; i++) {
        w->counts.bells_heard++;
        heard = true;
    }
    return heard;
}

void wire_drain_bell(struct wire *w)
{
    struct bell *b = w->bell;
    if (!b) return;
    if (hear_near(w)) b->listen_until_ns = clock_ns() + WIRE_BELL_NS;
    if (b->remote >= 0) hear_far(w);
}

/* In a job of one node only messages are announced, and each is there before its bell: the first one answers it. */
void bell_answered(struct wire *w)
{
    if (w->bell && w->n_nodes == 1) w->bell->listen_until_ns = 0;
}

bool wire_listens(const struct wire *w, u64 now_ns)
{
    const struct bell *b = w->bell;
    return b && (now_ns < b->listen_until_ns || (w->n_awaited && now_ns < b->await_until_ns));
}
