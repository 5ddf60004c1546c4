/* weights MEGABYTES FOLDER ROUNDS [cold]: how fast a model is loaded. Writes a bf16 model of that size into a new folder below FOLDER,
 * then in turn, with as many threads as the loader has: reads its file, into a small buffer, into new shared memory and into memory
 * that has its pages; copies as many bytes in memory; loads the model the way an engine does, into new shared memory and into memory
 * that has its pages. cold: the file is not in the page cache when a reading begins; it is read into a small buffer, past the page cache
 * (O_DIRECT) in pieces of 1 and of 8 MiB where the file system has that, and loaded. One JSON object: of each the gigabytes a second, and
 * a second of processor time. The folder is removed. */
#include "engine/weights.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
    HIDDEN = 2048,
    FFN = 5632,
    HEADS = 16,
    VOCAB = 32000,
    PIECE = 1 << 20,
    LARGE_PIECE = 8 << 20,
    MAX_ROUNDS = 64
};
static char folder[PATH_LEN - 64], config_file[PATH_LEN], model_file[PATH_LEN];

static void clean(void)
{
    unlink(config_file);
    unlink(model_file);
    rmdir(folder);
}

static void on_signal(int signal)
{
    clean();
    _exit(128 + signal);
}

_Noreturn static void give_up(const struct error *e)
{
    char line[1024];
    fprintf(stderr, "%s\n", error_text(e, line, sizeof line));
    exit(1);
}

/* ---- a model ---------------------------------------------------------------------------------------------------------*/
static u64 add_tensor(struct buf *header, u64 at, const char *name, u32 rows, u32 cols)
{
    u64 end = at + 2ull * rows * MAX_OF(cols, 1u);
    buf_printf(header, "%c\"%s\":{\"dtype\":\"BF16\",\"shape\":[%u", at ? ',' : '{', name, rows);
    if (cols) buf_printf(header, ",%u", cols);
    buf_printf(header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at, (unsigned long long)end);
    return end;
}

static u64 add_layer(struct buf *header, u64 at, u32 i)
{
    static const struct {
        const char *name;
        u32 rows, cols;
    } all[] = {
        {"input_layernorm", HIDDEN, 0},           {"post_attention_layernorm", HIDDEN, 0},
        {"self_attn.q_proj", HIDDEN, HIDDEN},     {"self_attn.k_proj", HIDDEN / 4, HIDDEN},
        {"self_attn.v_proj", HIDDEN / 4, HIDDEN}, {"self_attn.o_proj", HIDDEN, HIDDEN},
        {"mlp.gate_proj", FFN, HIDDEN},           {"mlp.up_proj", FFN, HIDDEN},
        {"mlp.down_proj", HIDDEN, FFN},
    };
    char name[128];
    for (size_t r = 0; r < COUNT_OF(all); r++) {
        snprintf(name, sizeof name, "model.layers.%u.%s.weight", i, all[r].name);
        at = add_tensor(header, at, name, all[r].rows, all[r].cols);
    }
    return at;
}

static void write_all(int fd, const void *data, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, (const char *)data + done, len - done);
        if (n <= 0) {
            perror(model_file);
            exit(1);
        }
        done += (size_t)n;
    }
}

static void write_data(int fd, u64 bytes)
{
    static u16 block[PIECE / 2];
    u64 state = 1;
    for (size_t i = 0; i < COUNT_OF(block); i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        block[i] = bf16_from_f32((float)(i32)(state >> 32) * 0x1p-36f);
    }
    for (u64 done = 0; done < bytes; done += MIN_OF((u64)PIECE, bytes - done))
        write_all(fd, block, MIN_OF((u64)PIECE, bytes - done));
}

/* Returns the file's bytes. */
static u64 make_model(const char *below, u64 wanted)
{
    struct buf header = {0};
    struct error err;
    char config[512];
    u64 at = add_tensor(&header, 0, "model.embed_tokens.weight", VOCAB, HIDDEN), len;
    u32 layers = 0;
    at = add_tensor(&header, at, "lm_head.weight", VOCAB, HIDDEN);
    at = add_tensor(&header, at, "model.norm.weight", HIDDEN, 0);
    do {
        at = add_layer(&header, at, layers++);
    } while (at < wanted && layers < MODEL_MAX_LAYERS);
    buf_char(&header, '}');
    while (header.len % 8) buf_char(&header, ' ');
    snprintf(folder, sizeof folder, "%s/mpiserve-bench-XXXXXX", below);
    if (!mkdtemp(folder)) {
        perror(folder);
        exit(1);
    }
    snprintf(config_file, sizeof config_file, "%s/config.json", folder);
    snprintf(model_file, sizeof model_file, "%s/model.safetensors", folder);
    atexit(clean);
    snprintf(
        config, sizeof config,
        "{\"model_type\":\"llama\",\"hidden_size\":%d,\"num_hidden_layers\":%u,\"num_attention_heads\":%d,"
        "\"num_key_value_heads\":%d,\"vocab_size\":%d,\"intermediate_size\":%d,"
        "\"max_position_embeddings\":4096,\"tie_word_embeddings\":false}",
        HIDDEN, layers, HEADS, HEADS / 4, VOCAB, FFN);
    if (file_write_whole(config_file, config, strlen(config), 0600, &err)) give_up(&err);
    int fd = open(model_file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    len = header.len;
    write_all(fd, &len, sizeof len);
    write_all(fd, header.data, header.len);
    write_data(fd, at);
    fsync(fd);
    close(fd);
    buf_release(&header);
    return sizeof len + len + at;
}

/* ---- what it is compared with ------------------------------------------------------------------------------------------*/
struct plain {
    int fd, direct; /* direct: with O_DIRECT; -1: there is none here */
    u64 bytes;
    u8 *from, *to; /* copying: [bytes] each; to: also loaded into */
    u8 *into;      /* reading: [bytes], or NULL: a buffer of a piece */
    _Atomic u64 next;
};

static void read_plainly(void *arg, int thread, int threads)
{
    (void)thread;
    (void)threads;
    struct plain *p = arg;
    u8 *piece = mem_alloc(PIECE);
    for (u64 at; (at = atomic_fetch_add(&p->next, PIECE)) < p->bytes;)
        for (u64 done = at, end = MIN_OF(at + PIECE, p->bytes); done < end;) {
            ssize_t n = pread(p->fd, p->into ? p->into + done : piece, end - done, (off_t)done);
            if (n <= 0) {
                perror(model_file);
                _exit(1);
            }
            done += (u64)n;
        }
    free(piece);
}

/* Whole pieces, the last one as far as the file goes. */
static void read_directly(struct plain *p, u64 size)
{
    u8 *piece = aligned_alloc(4096, size);
    for (u64 at; (at = atomic_fetch_add(&p->next, size)) < p->bytes;)
        for (u64 done = at, end = MIN_OF(at + size, p->bytes); done < end;) {
            ssize_t n = pread(p->direct, piece, at + size - done, (off_t)done);
            if (n <= 0 || (n % 4096 && done + (u64)n < end)) {
                perror(model_file);
                _exit(1);
            }
            done += (u64)n;
        }
    free(piece);
}

static void read_pieces(void *arg, int thread, int threads)
{
    (void)thread;
    (void)threads;
    read_directly(arg, PIECE);
}

static void read_large_pieces(void *arg, int thread, int threads)
{
    (void)thread;
    (void)threads;
    read_directly(arg, LARGE_PIECE);
}

static void copy_plainly(void *arg, int thread, int threads)
{
    (void)thread;
    (void)threads;
    struct plain *p = arg;
    for (u64 at; (at = atomic_fetch_add(&p->next, PIECE)) < p->bytes;)
        memcpy(p->to + at, p->from + at, MIN_OF((u64)PIECE, p->bytes - at));
}

/* ---- rounds ------------------------------------------------------------------------------------------------------------*/
enum { READ, READ_NEW, READ_TOUCHED, COPY, READ_DIRECT, READ_DIRECT_LARGE, LOAD_NEW, LOAD_TOUCHED, KINDS };
static const struct kind {
    const char *name;
    bool cached, cold;                              /* when it is measured */
    void (*fn)(void *arg, int thread, int threads); /* NULL: the loader */
} kinds[KINDS] = {
    [READ] = {"read", true, true, read_plainly},
    [READ_NEW] = {"read_new", true, false, read_plainly},
    [READ_TOUCHED] = {"read_touched", true, false, read_plainly},
    [COPY] = {"copy", true, false, copy_plainly},
    [READ_DIRECT] = {"read_direct", false, true, read_pieces},
    [READ_DIRECT_LARGE] = {"read_direct_large", false, true, read_large_pieces},
    [LOAD_NEW] = {"load_new", true, true, NULL},
    [LOAD_TOUCHED] = {"load_touched", true, true, NULL},
};

struct measured {
    struct model_config config;
    struct shard shard;
    struct model_files *files;
    struct pool *pool;
    struct plain plain;
    size_t image, room; /* room: for the image as for the file */
    struct speed {
        double wall, cpu; /* GB/s */
    } speeds[KINDS][MAX_ROUNDS];
};

static void *shared_memory(size_t bytes)
{
    int fd = memfd_create("mpiserve-bench", MFD_CLOEXEC);
    void *to = fd < 0 || ftruncate(fd, (off_t)bytes)
                   ? MAP_FAILED
                   : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (to == MAP_FAILED) {
        perror("shared memory");
        exit(1);
    }
    close(fd);
    return to;
}

static u64 cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (u64)t.tv_sec * NS_PER_S + (u64)t.tv_nsec;
}

static void run_once(struct measured *m, int kind, void *to)
{
    struct plain *p = &m->plain;
    struct error err;
    atomic_store(&p->next, 0);
    p->into = kind == READ ? NULL : to;
    if (kinds[kind].fn)
        pool_run(m->pool, kinds[kind].fn, p);
    else if (weights_fill(&m->config, &m->shard, m->files, NULL, to, m->image, NULL, &err))
        give_up(&err);
}

static void measure(struct measured *m, int kind, int round, bool cold)
{
    bool fresh = kind == READ_NEW || kind == LOAD_NEW;
    void *to = fresh ? shared_memory(m->room) : m->plain.to;
    if (cold) posix_fadvise(m->plain.fd, 0, 0, POSIX_FADV_DONTNEED);
    u64 start = clock_ns(), cpu = cpu_ns();
    run_once(m, kind, to);
    m->speeds[kind][round].cpu = (double)m->plain.bytes / (double)(cpu_ns() - cpu);
    m->speeds[kind][round].wall = (double)m->plain.bytes / (double)(clock_ns() - start);
    if (fresh) munmap(to, m->room);
}

static bool wanted(const struct measured *m, int kind, bool cold)
{
    bool direct = kind == READ_DIRECT || kind == READ_DIRECT_LARGE;
    return (cold ? kinds[kind].cold : kinds[kind].cached) && (!direct || m->plain.direct >= 0);
}

static void print(const struct measured *m, int rounds, int threads, bool cold)
{
    printf("{\"bytes\": %llu, \"threads\": %d", (unsigned long long)m->plain.bytes, threads);
    for (int k = 0; k < KINDS; k++) {
        const struct speed *v = m->speeds[k];
        if (!wanted(m, k, cold)) continue;
        printf(", \"%s\": [", kinds[k].name);
        for (int i = 0; i < rounds; i++) printf("%s%.4f", i ? ", " : "", v[i].wall);
        printf("], \"%s_cpu\": [", kinds[k].name);
        for (int i = 0; i < rounds; i++) printf("%s%.4f", i ? ", " : "", v[i].cpu);
        printf("]");
    }
    printf("}\n");
}

int main(int argc, char **argv)
{
    static struct measured m;
    struct error err;
    if (argc < 4) {
        fprintf(stderr, "weights MEGABYTES FOLDER ROUNDS [cold]\n");
        return 2;
    }
    bool cold = argc > 4;
    int rounds = MIN_OF(MAX_OF(atoi(argv[3]), 1), (int)MAX_ROUNDS), threads = weights_threads();
    static const int ends[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < COUNT_OF(ends); i++) signal(ends[i], on_signal);
    m.plain.bytes = make_model(argv[2], (u64)atoll(argv[1]) * 1000000);
    if (model_read_config(folder, &m.config, &err)) give_up(&err);
    m.shard = shard_whole(&m.config);
    m.files = model_open(folder, &err);
    if (!m.files || weights_plan(&m.config, &m.shard, m.files, NULL, &m.image, &err)) give_up(&err);
    m.pool = pool_new(threads, 0, &err);
    if (!m.pool) give_up(&err);
    m.room = MAX_OF(m.image, m.plain.bytes);
    m.plain.fd = open(model_file, O_RDONLY | O_CLOEXEC);
    m.plain.direct = open(model_file, O_RDONLY | O_CLOEXEC | O_DIRECT);
    m.plain.from = shared_memory(m.room);
    m.plain.to = shared_memory(m.room);
    memset(m.plain.from, 1, m.room);
    memset(m.plain.to, 1, m.room);
    for (int i = 0; i < rounds; i++)
        for (int k = 0; k < KINDS; k++)
            if (wanted(&m, k, cold)) measure(&m, k, i, cold);
    print(&m, rounds, threads, cold);
    pool_free(m.pool);
    model_close(m.files);
    return 0;
}
