/* base: the ground all rooms stand on: errors, log, memory, bytes, time, random numbers, queues, rings,
 * threads.
 *
 * Thread rule: unless a function says otherwise, an object may be used by one thread at a time; functions
 * without an object (clock, log, hash, rng) may be called from any thread.
 * Integers in shared memory and messages are little-endian and naturally aligned (x86-64, aarch64). */
#ifndef MPISERVE_BASE_H
#define MPISERVE_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t i8;
typedef int16_t i16;
typedef int32_t i32;
typedef int64_t i64;

#define MPISERVE_VERSION  "0.1.0"
#define COUNT_OF(a)       (sizeof(a) / sizeof((a)[0]))
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#define MIN_OF(a, b)      ((a) < (b) ? (a) : (b))
#define MAX_OF(a, b)      ((a) > (b) ? (a) : (b))
/* The struct whose member p points to. */
#define CONTAINER_OF(p, type, member) ((type *)((char *)(p)-offsetof(type, member)))

enum { CACHE_LINE = 64, PATH_LEN = 1024 };

/* The next multiple of 8: where parts of blocks and frames begin. */
static inline u64 align8(u64 n)
{
    return (n + 7) & ~7ull;
}

/* ---- errors
 * ------------------------------------------------------------------------------------------------- A
 * fallible function returns 0 or a negative code (or a pointer or NULL) and fills *err when err is not NULL.
 * message: what was wrong and what to do; where: option, file, field, byte (may be empty). */
enum error_code {
    ERR_INPUT = -1,       /* bad option, file, request: the user can mend it */
    ERR_UNSUPPORTED = -2, /* understood, and not offered */
    ERR_NOT_FOUND = -3,
    ERR_IO = -4,     /* the operating system said no; message holds its reason */
    ERR_MEMORY = -5, /* out of memory or address space */
    ERR_FULL = -6,   /* a bounded thing is full: try again later */
    ERR_STATE = -7,  /* not possible now (draining, stopped, stale) */
    ERR_PEER = -8,   /* another process broke the contract, or is gone */
};
struct error {
    int code;
    char where[256];
    char message[768];
};
/* Fills *err (NULL: nothing) and returns code, so that `return error_set(...)` reads well. */
int error_set(struct error *err, int code, const char *where, const char *fmt, ...) PRINTF_LIKE(4, 5);
/* The same with ": strerror(errno)" added and code ERR_IO. */
int error_errno(struct error *err, const char *where, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* "where: message", for one line of output; returns out. */
const char *error_text(const struct error *err, char *out, size_t size);
/* A broken invariant: prints file and line and aborts. Never for input. */
#define BUG(...) bug_at(__FILE__, __LINE__, __VA_ARGS__)
#define BUG_ON(cond)                                                                                         \
    do {                                                                                                     \
        if (cond) BUG("%s", #cond);                                                                          \
    } while (0)
_Noreturn void bug_at(const char *file, int line, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* ---- log
 * ---------------------------------------------------------------------------------------------------- One
 * line a call to stderr, written with one write(2): "12:34:56.789 I rank 3: text". Any thread. */
enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };
void log_setup(enum log_level level, const char *who); /* who: "rank 3", "engine 3"; copied; "" for none */
bool log_wants(enum log_level level);
void log_line(enum log_level level, const char *fmt, ...) PRINTF_LIKE(2, 3);
#define log_error(...)   log_line(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING, __VA_ARGS__)
#define log_info(...)    log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...)                                                                                       \
    do {                                                                                                     \
        if (log_wants(LOG_DEBUG)) log_line(LOG_DEBUG, __VA_ARGS__);                                          \
    } while (0)

/* ---- memory
 * ------------------------------------------------------------------------------------------------- mem_*:
 * malloc that ends the process with a message when there is no memory (small, bounded sizes only; sizes that
 * come from input are checked before, or taken with plain malloc and an error). */
void *mem_alloc(size_t size);
void *mem_zero(size_t count, size_t size);
void *mem_resize(void *p, size_t size);
char *mem_text(const char *s);
char *mem_textn(const char *s, size_t len); /* adds a NUL */

/* An arena: many allocations, one release. Blocks are 16-byte aligned and not zeroed. */
struct arena {
    struct arena_block *head;
    size_t block_size;
};
void arena_init(struct arena *a, size_t block_size); /* 0: 16 KiB */
void *arena_alloc(struct arena *a, size_t size);
char *arena_text(struct arena *a, const char *s, size_t len); /* adds a NUL */
void arena_clear(struct arena *a);                            /* keeps one block for reuse */
void arena_release(struct arena *a);

/* ---- growable bytes
 * ----------------------------------------------------------------------------------------- {0} is a valid
 * empty buf. data[len] is always NUL once something was added. */
struct buf {
    char *data;
    size_t len, cap;
};
void buf_release(struct buf *b);
void buf_clear(struct buf *b);
void buf_reserve(struct buf *b, size_t more);
void buf_add(struct buf *b, const void *data, size_t len);
void buf_text(struct buf *b, const char *s);
void buf_char(struct buf *b, char c);
void buf_printf(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* ---- files
 * ---------------------------------------------------------------------------------------------------*/
/* Reads a whole file of at most max bytes into *out (cleared first). Errors name the file and its size. */
int file_read(const char *path, size_t max, struct buf *out, struct error *err);
/* Writes path + ".new", syncs, renames: a reader sees the old file or the whole new one. */
int file_write_whole(const char *path, const void *data, size_t len, unsigned mode, struct error *err);
bool file_exists(const char *path);
/* Lets this process have as many files open as it may (65536 at most). Returns how many, or ERR_IO when they are fewer than
 * need: the message says how to raise the limit. */
i64 file_limit(u64 need, struct error *err);
/* Bytes that this user may still write in the file system of a folder; UINT64_MAX when it cannot be told. */
u64 file_room(const char *folder);
/* snprintf into a path; ERR_INPUT when it does not fit. */
int path_join(char *out, size_t size, struct error *err, const char *fmt, ...) PRINTF_LIKE(4, 5);

/* ---- time
 * ---------------------------------------------------------------------------------------------------*/
/* In a loop that polls: the core's other thread and its own speculation are given way. */
static inline void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#else
    __asm__ volatile("" ::: "memory");
#endif
}
u64 clock_ns(void);   /* CLOCK_MONOTONIC; the same clock for all processes of a host */
i64 clock_unix(void); /* seconds since 1970 */
#define NS_PER_S  1000000000ull
#define NS_PER_MS 1000000ull
#define NS_PER_US 1000ull

/* ---- dwelling
 * -----------------------------------------------------------------------------------------------
 * A thread that has just had work looks for more for DWELL_NS before it blocks, and gives its core away between two looks: whoever
 * has work for it then need not wake it, which costs both of them more than most work does. One thread; {0} at first.
 *     if (there was work) dwell_worked(&d, now); else if (!dwell_on(&d, now)) block;
 * It is to cost nobody else's time:
 * - Who has given the core to others DWELL_TURNS times (it took longer than DWELL_TURN_NS) and found no work blocks: they need the core.
 * - A thread that computes may keep the core for a whole slice of the scheduler's, while one that blocks is woken at once. So who did
 *   not get it back within DWELL_HOG_NS blocks without dwelling for a while: DWELL_SHY_MIN_NS, and twice as long each time that it
 *   happens again soon, up to DWELL_SHY_MOST_NS. */
#define DWELL_NS          (100 * NS_PER_US)
#define DWELL_TURN_NS     NS_PER_US
#define DWELL_TURNS       8
#define DWELL_HOG_NS      NS_PER_MS
#define DWELL_SHY_MIN_NS  NS_PER_MS
#define DWELL_SHY_MOST_NS NS_PER_S
struct dwell {
    u64 worked_ns;            /* last work */
    u32 turns;                /* that others had since */
    u64 shy_until_ns, shy_ns; /* it does not dwell until then; how long that was */
};
void dwell_worked(struct dwell *d, u64 now_ns);
bool dwell_may(const struct dwell *d, u64 now_ns); /* there is no work: is another look worth it? */
void dwell_gave_way(struct dwell *d, u64 before_ns, u64 now_ns); /* others had the core so long */
bool dwell_on(struct dwell *d, u64 now_ns); /* both, giving way between them; true: look again */

/* ---- slices
 * --------------------------------------------------------------------------------------------------
 * How long the calling thread, and those that it starts from then on, compute at a time when others wait for the core; 0: as long as
 * the kernel likes. Of threads that have had their share, the one with the shorter slice comes first, and giving way
 * (sched_yield) costs a slice: threads that relay ask for short ones, those that compute do not (EEVDF: Linux 6.12 on; I. Stoica and H. Abdel-Wahab, "Earliest eligible
 * virtual deadline first", 1995). Returns the slice in ns, 0 where the kernel is older or the thread has another policy than the
 * normal one, which stays. */
#define SLICE_SHORT_NS (100 * NS_PER_US) /* the kernel's shortest */
u64 thread_slice(u64 ns);

/* ---- hashes and random numbers
 * ------------------------------------------------------------------------------*/
u64 hash_bytes(const void *data, size_t len,
               u64 seed);                          /* 64 bits, not cryptographic, the same on every machine */
u32 crc32c(const void *data, size_t len, u32 crc); /* Castagnoli; start with 0 */
u32 crc32c_portable(const void *data, size_t len, u32 crc); /* the same value without the CPU's instruction */
int random_bytes(void *out, size_t len, struct error *err); /* from the kernel */
u64 random_u64(
    void); /* the same, fetched for many calls of a thread at once: for names and seeds, not for keys */
/* Counter-based: a pure function of key and counter (Philox 4x32-10: Salmon et al., "Parallel random numbers:
 * as easy as 1, 2, 3", SC11). The same on every machine. */
void rng_block(u64 key, u64 counter_lo, u64 counter_hi, u32 out[4]);
/* Uniform in (0, 1), never 0 or 1: 23 random bits, centred (the odd multiples of 2^-24, exact in a float). */
float rng_unit(u32 bits);

/* ---- queue: many producers, one consumer
 * -------------------------------------------------------------------- Intrusive (put a struct queue_node
 * into your struct), unbounded, FIFO. push: any thread, and it writes the eventfd only when the consumer has
 * said that it may sleep. */
struct queue_node {
    struct queue_node *next;
};
struct queue;
struct queue *queue_new(struct error *err);
void queue_free(struct queue *q);    /* nodes still inside are the caller's */
int queue_fd(const struct queue *q); /* readable when something was pushed to a sleeping consumer */
void queue_push(struct queue *q, struct queue_node *n);
struct queue_node *queue_take_all(struct queue *q); /* consumer: the whole list, oldest first, or NULL */
/* Consumer, before it blocks on queue_fd: false when something is waiting (do not sleep then). */
bool queue_prepare_sleep(struct queue *q);
void queue_woke(struct queue *q); /* consumer, after it blocked: empties the eventfd */

/* ---- ring: one producer, one consumer, in shared memory
 * ------------------------------------------------------ Frames of up to ring_max_frame() bytes, 8-byte
 * aligned, each with its length. The memory may be shared between processes of a host; a peer that died in
 * the middle of a write leaves no half frame visible. Sizes read from shared memory are checked: a corrupt
 * ring gives ERR_PEER, never an access out of bounds. Producer: ring_claim, fill, ring_publish. Consumer:
 * ring_peek, use, ring_consume. */
struct ring {
    struct ring_head *head; /* in shared memory */
    u8 *data;
    u64 size; /* bytes of data, a power of two; this side's own copy */
    u64 at, claimed;
    bool open; /* between claim and publish, or peek and consume */
};
size_t ring_bytes(size_t data_size); /* memory needed for a ring of data_size (power of two, >= 4096) */
void ring_format(void *mem, size_t data_size); /* empties; neither side may be active */
int ring_attach(struct ring *r, void *mem, size_t mem_size, struct error *err);
size_t ring_max_frame(const struct ring *r);   /* half of the size, less the header */
void *ring_claim(struct ring *r, size_t len);  /* NULL: no room now */
void ring_publish(struct ring *r, size_t len); /* len <= claimed */
/* The oldest frame, or NULL with *len = 0 when there is none; NULL with *len = SIZE_MAX when the ring is
 * corrupt. */
const void *ring_peek(struct ring *r, size_t *len);
void ring_consume(struct ring *r);

/* ---- threads: a fixed pool that runs the same function on every thread
 * --------------------------------------- pool_run returns when all threads (the caller is thread 0) have
 * returned from fn. Threads wait by spinning spin_ns, then by sleeping (0: sleep at once, the right choice
 * when cores are shared); while spins end in vain, most waits sleep at once too. */
struct pool;
struct pool *pool_new(int threads, u64 spin_ns, struct error *err);
void pool_free(struct pool *p);
int pool_threads(const struct pool *p);
void pool_run(struct pool *p, void (*fn)(void *arg, int thread, int threads), void *arg);
void pool_barrier(struct pool *p); /* inside fn: waits for all threads of the pool */

#endif
