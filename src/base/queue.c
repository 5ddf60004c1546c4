/* Many producers, one consumer: a stack that producers push to with one CAS, taken whole and turned around.
 *
 * No wake-up is lost: the consumer sets `sleeping` and then looks for nodes, a producer adds its node and
 * then looks at `sleeping`. All four are sequentially consistent, so at least one of the two sees the other.
 */
#include "mpiserve/base.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct queue {
    _Alignas(CACHE_LINE) _Atomic(struct queue_node *) newest;
    _Alignas(CACHE_LINE) atomic_bool sleeping;
    int fd;
};

struct queue *queue_new(struct error *err)
{
    struct queue *q = aligned_alloc(CACHE_LINE, sizeof(*q));
    if (!q) {
        error_set(err, ERR_MEMORY, "", "no memory for a queue");
        return NULL;
    }
    atomic_init(&q->newest, NULL);
    atomic_init(&q->sleeping, false);
    q->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (q->fd < 0) {
        error_errno(err, "", "cannot create an eventfd");
        free(q);
        return NULL;
    }
    return q;
}

void queue_free(struct queue *q)
{
    if (!q) return;
    close(q->fd);
    free(q);
}

int queue_fd(const struct queue *q)
{
    return q->fd;
}

static void ring_the_bell(int fd)
{
    u64 one = 1;
    while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR) {}
}

void queue_push(struct queue *q, struct queue_node *n)
{
    struct queue_node *old = atomic_load_explicit(&q->newest, memory_order_relaxed);
    do n->next = old;
    while (!atomic_compare_exchange_weak(&q->newest, &old, n));
    /* From here on n is the consumer's. Of many producers only one pays for the system call. */
    if (atomic_load(&q->sleeping) && atomic_exchange(&q->sleeping, false)) ring_the_bell(q->fd);
}

struct queue_node *queue_take_all(struct queue *q)
{
    if (!atomic_load_explicit(&q->newest, memory_order_relaxed)) return NULL;
    struct queue_node *n = atomic_exchange(&q->newest, NULL), *oldest = NULL;
    while (n) {
        struct queue_node *next = n->next;
        n->next = oldest;
        oldest = n;
        n = next;
    }
    return oldest;
}

bool queue_prepare_sleep(struct queue *q)
{
    atomic_store(&q->sleeping, true);
    if (!atomic_load(&q->newest)) return true;
    atomic_store(&q->sleeping, false);
    return false;
}

void queue_woke(struct queue *q)
{
    u64 count;
    atomic_store(&q->sleeping, false);
    while (read(q->fd, &count, sizeof(count)) < 0 && errno == EINTR) {}
}
