/* proc: real engines, started, killed, started again; what they inherit; when to start again. Needs the built program:
 * ./$PROGRAM, by default ./mpiserve. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "mpiserve/engine.h"
#include "mpiserve/json.h"
#include "mpiserve/proc.h"
#include "stepper.h"

enum { TOKENS = 24, LONGEST = 160, ROW_BLOCKS = 16, BLOCKS = 40 };

struct site { /* an agent: one engine and its memory */
    struct engine_needs needs;
    struct proc_spec spec;
    struct proc *proc;
    struct stepper s;
    u64 sent_ns;
    u32 gen;
};
static char program[PATH_LEN], model[PATH_LEN];
static i32 prompt[LONGEST], greedy[TOKENS];
static u32 n_prompt;

static void nap(u64 ms)
{
    nanosleep(&(struct timespec){.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000 * NS_PER_MS)},
              NULL);
}

static void need(bool fine, const struct error *err)
{
    char text[1200];
    if (fine) return;
    fprintf(stderr, "%s\n", error_text(err, text, sizeof(text)));
    abort();
}

static void site_init(struct site *a, const char *fault)
{
    struct error err = {0};
    *a = (struct site){.s.numerics = 0};
    struct engine_ask ask = {.model = model, .compute = "f32", .isa = "auto", .block_size = 16};
    need(engine_plan(&ask, &a->needs, &err) == 0, &err);
    struct engine_boot *b = &a->spec.boot;
    *b = (struct engine_boot){.weights_bytes = a->needs.weights_bytes,
                              .kv_bytes = a->needs.kv_bytes_per_block * BLOCKS,
                              .numerics = a->needs.numerics,
                              .rank = 3,
                              .block_size = 16,
                              .n_blocks = BLOCKS,
                              .max_rows = 4,
                              .max_step_tokens = 64,
                              .max_model_len = ROW_BLOCKS * 16,
                              .max_logprobs = 5,
                              .threads = 1,
                              .loader = 1,
                              .log_level = LOG_INFO};
    snprintf(b->model, sizeof(b->model), "%s", model);
    memcpy(b->compute, a->needs.compute, sizeof(b->compute));
    memcpy(b->isa, a->needs.isa, sizeof(b->isa));
    a->spec.program = program;
    a->spec.fault = fault;
    a->spec.weights_fd = memory_new("weights", b->weights_bytes, true, &err);
    need(a->spec.weights_fd >= 0, &err);
    a->spec.kv_fd = memory_new("kv", b->kv_bytes, true, &err);
    need(a->spec.kv_fd >= 0, &err);
    a->spec.ring_size = engine_ring_size(4, 64, ROW_BLOCKS * 16, 5, 0, 16);
    a->proc = proc_new(&a->spec, &err);
    need(a->proc != NULL, &err);
    a->s.numerics = a->needs.numerics;
}

static void site_release(struct site *a)
{
    proc_free(a->proc);
    close(a->spec.weights_fd);
    close(a->spec.kv_fd);
    buf_release(&a->s.data);
}

/* Turns the agent's loop until something happens to the engine; 20 s. */
static enum proc_event turn_until_event(struct site *a, struct proc_verdict *died)
{
    u64 until = clock_ns() + 20 * NS_PER_S;
    while (clock_ns() < until) {
        enum proc_event e = proc_poll(a->proc, clock_ns(), a->sent_ns, died);
        if (e != PROC_EVENT_NONE) return e;
        struct pollfd p = {.fd = proc_pidfd(a->proc), .events = POLLIN};
        poll(&p, 1, 5);
    }
    fail_msg("nothing happened to the engine");
    return PROC_EVENT_NONE;
}

static void site_start(struct site *a)
{
    struct error err;
    struct proc_verdict died = {0};
    need(proc_start(a->proc, ++a->gen, clock_ns(), &err) == 0, &err);
    a->s.gen = a->gen;
    a->s.id = 1;
    a->sent_ns = 0;
    if (turn_until_event(a, &died) != PROC_EVENT_READY) fail_msg("%s", died.text);
    assert_int_equal(proc_state(a->proc), PROC_READY);
}

static void send(struct site *a, u32 kind)
{
    size_t len;
    void *frame = stepper_seal(&a->s, kind, &len), *to = channel_step_claim(proc_channel(a->proc), len);
    assert_non_null(to);
    memcpy(to, frame, len);
    free(frame);
    a->sent_ns = clock_ns();
    channel_step_publish(proc_channel(a->proc), len);
}

/* The next results; the caller's until the next call. */
static struct results_view receive(struct site *a)
{
    struct channel *c = proc_channel(a->proc);
    struct results_view v;
    for (u64 until = clock_ns() + 10 * NS_PER_S; clock_ns() < until;) {
        size_t len;
        const void *frame = channel_result_peek(c, &len);
        if (frame) {
            assert_int_equal(results_view(&v, frame, len, NULL), 0);
            channel_result_consume(c);
            a->sent_ns = 0;
            return v;
        }
        assert_int_equal(len, 0);
        if (!channel_agent_prepare_sleep(c)) continue;
        struct pollfd p = {.fd = channel_fd(c, FD_TO_AGENT), .events = POLLIN};
        poll(&p, 1, 1000);
        channel_agent_woke(c);
    }
    fail_msg("no results");
    return v;
}

/* Row 0 from a history of n tokens, count more. */
static void generate(struct site *a, const i32 *history, u32 n, i32 *out, u32 count)
{
    struct sampling how = stepper_greedy();
    u32 blocks[ROW_BLOCKS];
    for (u32 i = 0; i < ROW_BLOCKS; i++) blocks[i] = 1 + i;
    stepper_new(&a->s, 0, a->gen, &how, history, n_prompt, n, ROW_BLOCKS * 16);
    for (u32 k = 0; k < count; k++) {
        stepper_row(&a->s, 0, a->gen, k ? n + k - 1 : 0, k ? 1 : n, WANT_SAMPLE, blocks, k ? 0 : ROW_BLOCKS);
        send(a, STEP_FORWARD);
        struct results_view v = receive(a);
        assert_true(!v.head->failed && v.head->n == 1 && v.rows[0].n_out == 1);
        out[k] = *(const i32 *)results_at(&v, v.rows[0].tokens);
    }
}

/* ---- tests ---- */

static void killed_and_replayed(void **state)
{
    (void)state;
    struct site a;
    struct proc_verdict died;
    i32 history[LONGEST], out[TOKENS];
    site_init(&a, NULL);
    site_start(&a);
    generate(&a, prompt, n_prompt, out, 9);
    assert_memory_equal(out, greedy, 9 * sizeof(i32));
    assert_int_equal(kill(proc_pid(a.proc), SIGKILL), 0);
    assert_int_equal(turn_until_event(&a, &died), PROC_EVENT_DIED);
    assert_true(died.cause == PROC_SIGNAL && died.code == SIGKILL && died.gen == 1 && !died.blame &&
                died.memory_trusted && died.silent_ns == 0);
    assert_non_null(strstr(died.text, "engine of rank 3"));
    assert_int_equal(proc_state(a.proc), PROC_NONE);
    assert_int_equal(proc_pidfd(a.proc), -1);
    memcpy(history, prompt, n_prompt * sizeof(i32));
    memcpy(history + n_prompt, out, 9 * sizeof(i32));
    u64 start = clock_ns();
    site_start(&a);
    printf("# a second engine is ready after %.1f ms\n", (double)(clock_ns() - start) / NS_PER_MS);
    assert_int_equal(atomic_load(&channel_head(proc_channel(a.proc))->loaded_bytes),
                     0); /* the image was there */
    generate(&a, history, n_prompt + 9, out, TOKENS - 9);
    assert_memory_equal(out, greedy + 9, (TOKENS - 9) * sizeof(i32));
    for (u32 kind = STEP_DUMMY; kind <= STEP_CANARY; kind++) {
        send(&a, kind);
        struct results_view v = receive(&a);
        assert_true(!v.head->failed && v.head->kind == kind);
    }
    site_release(&a);
}

static void stale_steps(void **state)
{
    (void)state;
    struct site a;
    site_init(&a, NULL);
    site_start(&a);
    a.s.gen = 7;
    send(&a, STEP_DUMMY);
    struct results_view v = receive(&a);
    assert_true(v.head->failed && v.head->gen == 1);
    site_release(&a);
}

/* Signals for the whole foreground group and a launcher's are not for engines. */
static void ignored_signals(void **state)
{
    (void)state;
    struct site a;
    const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};
    site_init(&a, NULL);
    struct error err;
    need(proc_start(a.proc, ++a.gen, clock_ns(), &err) == 0, &err);
    a.s.gen = a.s.id = 1;
    for (size_t i = 0; i < COUNT_OF(signals); i++)
        kill(proc_pid(a.proc), signals[i]); /* from the first instruction on */
    assert_int_equal(turn_until_event(&a, NULL), PROC_EVENT_READY);
    for (size_t i = 0; i < COUNT_OF(signals); i++) kill(proc_pid(a.proc), signals[i]);
    send(&a, STEP_CANARY);
    assert_false(receive(&a).head->failed);
    site_release(&a);
}

static void read_proc(int pid, const char *name, struct buf *out)
{
    char path[64];
    struct error err;
    snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
    need(file_read(path, 1 << 20, out, &err) == 0, &err);
}

static bool environment_has(const struct buf *env, const char *name)
{
    for (size_t at = 0; at < env->len; at += strlen(env->data + at) + 1)
        if (strncmp(env->data + at, name, strlen(name)) == 0) return true;
    return false;
}

static void inheritance(void **state)
{
    (void)state;
    static const char *const gone[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK",       "PMI_FD",          "PRTE_X",
                                       "SLURM_JOB_ID",         "SLURMD_NODENAME", "MPISERVE_API_KEY"};
    static const char *const kept[] = {"NCCL_DEBUG", "UCX_TLS", "FI_PROVIDER", "CUDA_VISIBLE_DEVICES",
                                       "PATH"};
    for (size_t i = 0; i < COUNT_OF(gone); i++) setenv(gone[i], "secret", 1);
    for (size_t i = 0; i + 1 < COUNT_OF(kept); i++) setenv(kept[i], "kept", 1);
    int leak[2], high = dup2(STDERR_FILENO, 400);
    assert_int_equal(pipe(leak), 0); /* without O_CLOEXEC, on purpose */
    struct sigaction old, ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGCHLD, NULL, &old);
    sigaction(SIGALRM, &ignore, NULL);
    sigset_t mask, before;
    sigemptyset(&mask);
    sigaddset(&mask, SIGALRM);
    sigprocmask(SIG_BLOCK, &mask, &before);

    struct site a;
    site_init(&a, NULL);
    site_start(&a);
    struct buf text = {0};
    read_proc(proc_pid(a.proc), "environ", &text);
    for (size_t i = 0; i < COUNT_OF(gone); i++) assert_false(environment_has(&text, gone[i]));
    for (size_t i = 0; i < COUNT_OF(kept); i++) assert_true(environment_has(&text, kept[i]));
    read_proc(proc_pid(a.proc), "status", &text);
    unsigned long long blocked = 1, ignored = 0;
    sscanf(strstr(text.data, "SigBlk:"), "SigBlk: %llx", &blocked);
    sscanf(strstr(text.data, "SigIgn:"), "SigIgn: %llx", &ignored);
    assert_true(blocked == 0);
    assert_true(ignored & 1 << (SIGINT - 1) && !(ignored & 1 << (SIGALRM - 1)));
    read_proc(proc_pid(a.proc), "comm", &text);
    assert_string_equal(text.data, "mpiserve-eng\n");

    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd", proc_pid(a.proc));
    DIR *dir = opendir(path);
    int n = 0;
    for (struct dirent *e; (e = readdir(dir)); n++)
        if (e->d_name[0] != '.' && atoi(e->d_name) > FD_KV) {
            char target[PATH_LEN] = "";
            ssize_t len = readlinkat(dirfd(dir), e->d_name, target, sizeof(target) - 1);
            assert_true(len > 0);
            /* its own: the model's files */
            if (!strstr(target, "safetensors")) fail_msg("descriptor %s: %s", e->d_name, target);
        }
    closedir(dir);
    assert_true(n >= 2 + FD_KV + 1);
    site_release(&a);
    buf_release(&text);
    sigprocmask(SIG_SETMASK, &before, NULL);
    signal(SIGALRM, SIG_DFL);
    close(leak[0]);
    close(leak[1]);
    close(high);
    for (size_t i = 0; i < COUNT_OF(gone); i++) unsetenv(gone[i]);
}

static bool running(int pid)
{
    char path[64], line[256] = "";
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    bool ok = fgets(line, sizeof(line), f) != NULL;
    fclose(f);
    const char *end = strrchr(line, ')');
    return ok && end && end[2] != 'Z' && end[2] != 'X';
}

/* An agent is killed with -9, idle or while its engine loads: the engine is gone at once. */
static void agent_dies(void **state)
{
    (void)state;
    for (int ready = 0; ready < 2; ready++) {
        int tell[2], engine = 0;
        assert_int_equal(pipe2(tell, O_CLOEXEC), 0);
        pid_t agent = fork();
        if (agent == 0) {
            struct site a;
            struct error err;
            site_init(&a, NULL);
            if (ready) {
                site_start(&a);
            } else {
                need(proc_start(a.proc, 1, clock_ns(), &err) == 0, &err);
            }
            int pid = proc_pid(a.proc);
            if (write(tell[1], &pid, sizeof(pid)) != sizeof(pid)) _exit(1);
            for (;;) pause();
        }
        assert_int_equal(read(tell[0], &engine, sizeof(engine)), sizeof(engine));
        assert_true(engine > 0);
        kill(agent, SIGKILL);
        u64 start = clock_ns();
        waitpid(agent, NULL, 0);
        while (running(engine) && clock_ns() - start < NS_PER_S) nap(1);
        u64 took = clock_ns() - start;
        if (took > 200 * NS_PER_MS)
            fail_msg("the engine outlived its agent by %.0f ms", (double)took / NS_PER_MS);
        close(tell[0]);
        close(tell[1]);
    }
}

static void crash_and_hang(void **state)
{
    (void)state;
    struct site a;
    struct proc_verdict died;
    site_init(&a, "crash-step:2");
    site_start(&a);
    send(&a, STEP_CANARY);
    receive(&a);
    send(&a, STEP_CANARY);
    assert_int_equal(turn_until_event(&a, &died), PROC_EVENT_DIED);
    assert_true(died.cause == PROC_SIGNAL && died.code == SIGABRT && died.blame && !died.memory_trusted);
    site_start(&a); /* generation 2: the fault was of the first */
    send(&a, STEP_CANARY);
    send(&a, STEP_CANARY);
    receive(&a);
    assert_true(receive(&a).head->step == 2);
    site_release(&a);

    site_init(&a, "stall-step:1");
    proc_free(a.proc);
    a.spec.limits.step_ns = 300 * NS_PER_MS;
    a.proc = proc_new(&a.spec, NULL);
    site_start(&a);
    send(&a, STEP_CANARY);
    assert_int_equal(turn_until_event(&a, &died), PROC_EVENT_DIED);
    assert_true(died.cause == PROC_HANG && died.blame && !died.memory_trusted);
    assert_non_null(strstr(died.text, "a step was not answered"));
    site_release(&a);
}

static void stopped_engine(void **state)
{
    (void)state;
    struct site a;
    struct proc_verdict died;
    site_init(&a, NULL);
    proc_free(a.proc);
    a.spec.limits.idle_ns = 1200 * NS_PER_MS;
    a.proc = proc_new(&a.spec, NULL);
    site_start(&a);
    u64 start = clock_ns(); /* idle: its heartbeat goes on */
    while (clock_ns() - start < 2 * NS_PER_S) {
        assert_int_equal(proc_poll(a.proc, clock_ns(), 0, &died), PROC_EVENT_NONE);
        nap(20);
    }
    kill(proc_pid(a.proc), SIGSTOP);
    assert_int_equal(turn_until_event(&a, &died), PROC_EVENT_DIED);
    assert_true(died.cause == PROC_HANG && !died.blame && died.silent_ns > a.spec.limits.idle_ns);
    assert_non_null(strstr(died.text, "no heartbeat"));
    /* this process was stopped itself, with its engine: nobody is to blame */
    site_start(&a);
    kill(proc_pid(a.proc), SIGSTOP);
    nap(1500);
    kill(proc_pid(a.proc), SIGCONT);
    assert_int_equal(proc_poll(a.proc, clock_ns(), 0, &died), PROC_EVENT_NONE);
    assert_int_equal(proc_state(a.proc), PROC_READY);
    proc_kill(a.proc, false, "enough");
    assert_int_equal(proc_state(a.proc), PROC_DYING);
    assert_int_equal(turn_until_event(&a, &died), PROC_EVENT_DIED);
    assert_true(died.cause == PROC_KILLED && died.memory_trusted && died.silent_ns < NS_PER_S);
    assert_non_null(strstr(died.text, "enough"));
    /* and when it is killed before this process has looked again */
    site_start(&a);
    nap(20);
    kill(proc_pid(a.proc), SIGSTOP);
    nap(1500);
    proc_kill(a.proc, false, "enough");
    assert_int_equal(turn_until_event(&a, &died), PROC_EVENT_DIED);
    assert_true(died.silent_ns < NS_PER_S);
    site_release(&a);
}

static void engines_that_cannot_start(void **state)
{
    (void)state;
    struct site a;
    struct proc_verdict died;
    struct error err;
    site_init(&a, NULL);
    proc_free(a.proc);
    a.spec.program = "/no/such/program";
    a.proc = proc_new(&a.spec, NULL);
    assert_int_equal(proc_start(a.proc, 1, clock_ns(), &err), ERR_IO);
    assert_int_equal(proc_state(a.proc), PROC_NONE);
    site_release(&a);

    site_init(&a, NULL);
    proc_free(a.proc);
    snprintf(a.spec.boot.model, sizeof(a.spec.boot.model), "/no/such/model");
    a.proc = proc_new(&a.spec, NULL);
    need(proc_start(a.proc, 1, clock_ns(), &err) == 0, &err);
    assert_int_equal(turn_until_event(&a, &died), PROC_EVENT_DIED);
    assert_true(died.cause == PROC_EXIT && died.code == 1 && !died.blame);
    assert_non_null(strstr(died.text, "/no/such/model")); /* the reason came through the channel */
    site_release(&a);

    site_init(&a, NULL);
    proc_free(a.proc);
    a.spec.boot.n_adapters = 1;
    memset(a.spec.boot.adapters[0].name, 'x', sizeof(a.spec.boot.adapters[0].name)); /* without an end */
    a.proc = proc_new(&a.spec, NULL);
    need(proc_start(a.proc, 1, clock_ns(), &err) == 0, &err);
    assert_int_equal(turn_until_event(&a, &died), PROC_EVENT_DIED);
    assert_int_equal(died.code, 1);
    assert_non_null(strstr(died.text, "boot: "));
    site_release(&a);

    site_init(&a, "crash-load:0");
    need(proc_start(a.proc, 1, clock_ns(), &err) == 0, &err);
    assert_int_equal(turn_until_event(&a, &died), PROC_EVENT_DIED);
    assert_int_equal(died.code, SIGABRT);
    site_release(&a);
}

/* Two agents of a host, one image: the waiter starts first; the loader dies half-way; then one fills it. */
static void shared_weights(void **state)
{
    (void)state;
    struct site a, b;
    struct error err;
    struct proc_verdict died;
    i32 out[TOKENS];
    site_init(&a, NULL);
    site_init(&b, NULL);
    close(b.spec.weights_fd);
    b.spec.weights_fd = memory_open(getpid(), a.spec.weights_fd, a.needs.weights_bytes, &err);
    need(b.spec.weights_fd >= 0, &err);
    b.spec.boot.loader = 0;
    proc_free(b.proc);
    b.proc = proc_new(&b.spec, NULL);
    need(proc_start(b.proc, ++b.gen, clock_ns(), &err) == 0, &err);
    b.s.gen = b.s.id = 1;
    struct weights_head *h = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, a.spec.weights_fd, 0);
    atomic_store(&h->ready, 1); /* a loader that died */
    nap(200);
    assert_int_equal(proc_poll(b.proc, clock_ns(), 0, &died), PROC_EVENT_NONE);
    site_start(&a);
    assert_int_equal(atomic_load(&h->ready), 2);
    assert_int_equal(turn_until_event(&b, &died), PROC_EVENT_READY);
    generate(&b, prompt, n_prompt, out, TOKENS);
    assert_memory_equal(out, greedy, sizeof(out));
    munmap(h, 4096);
    site_release(&b);
    site_release(&a);
}

static void memory(void **state)
{
    (void)state;
    struct error err;
    int fd = memory_new("kv", 1 << 20, true, &err);
    assert_true(fd >= 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC));
    assert_int_equal(ftruncate(fd, 0), -1);
    int again = memory_open(getpid(), fd, 1 << 20, &err);
    assert_true(again >= 0 && (fcntl(again, F_GETFD) & FD_CLOEXEC));
    close(again);
    assert_int_equal(memory_open(getpid(), fd, (1 << 20) + 1, &err), ERR_PEER);
    int other = open("/dev/null", O_RDWR);
    assert_int_equal(memory_open(getpid(), other, 0, &err), ERR_PEER);
    close(other);
    close(fd);
    assert_int_equal(memory_open(getpid(), fd, 1 << 20, &err), ERR_IO);
    u64 left = memory_left();
    assert_true(left > 0);
    if (left < UINT64_MAX / 2) assert_int_equal(memory_new("kv", left * 2, true, &err), ERR_MEMORY);
}

static void restarts(void **state)
{
    (void)state;
    const struct restart_policy p = {
        .first_ns = 10, .longest_ns = 100, .window_ns = 10000, .calm_ns = 5000, .most = 6};
    struct restart r;
    restart_init(&r, &p);
    const u64 waits[] = {10, 20, 40, 80, 100};
    u64 now = 1000;
    for (size_t i = 0; i < COUNT_OF(waits); i++, now += 200) {
        restart_ready(&r, now - 1);
        assert_true(restart_died(&r, now) == now + waits[i]);
    }
    assert_true(restart_died(&r, now) == UINT64_MAX && restart_broken(&r)); /* the sixth within the window */
    restart_init(&r, &p);
    for (now = 1000; now < 100000;
         now += 6000) { /* calm between deaths: always the first wait, never broken */
        restart_ready(&r, now - 5500);
        assert_true(restart_died(&r, now) == now + 10);
    }
    restart_init(&r, &p);
    for (int i = 0; i < 40; i++) { /* five within any window: goes on */
        now += 2001;
        assert_true(restart_died(&r, now) != UINT64_MAX);
    }
    restart_init(&r, NULL);
    assert_true(restart_died(&r, 5) == 5 + 50 * NS_PER_MS);
}

static void limits(void **state)
{
    (void)state;
    const struct proc_limits l = {.start_ns = 10, .load_ns = 20, .idle_ns = 30, .step_ns = 40};
    const struct {
        struct proc_vital v;
        bool hung;
    } cases[] = {
        {{ENGINE_STARTING, 10, 0, 0}, false},     {{ENGINE_STARTING, 11, 0, 0}, true},
        {{ENGINE_LOADING, 50, 20, 0}, false},     {{ENGINE_LOADING, 20, 50, 0}, false},
        {{ENGINE_LOADING, 21, 21, 0}, true},      {{ENGINE_READY, 30, 99, 0}, false},
        {{ENGINE_READY, 31, 0, 0}, true},         {{ENGINE_READY, 39, 0, 40}, false},
        {{ENGINE_READY, 0, 0, 41}, true},         {{ENGINE_FAILED, 11, 0, 0}, true},
        {{(enum engine_state)77, 0, 0, 0}, true},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        assert_int_equal(proc_hung(&cases[i].v, &l) != NULL, cases[i].hung);
}

static void environments(void **state)
{
    (void)state;
    char *env[] = {"PATH=/bin",     "OMPI_MCA_btl=self",           "LD_LIBRARY_PATH=/x", "PMIX_ID=1",
                   "SLURM_JOBID=3", "MPISERVE_FAULT=crash-step:1", "OMP_NUM_THREADS=1",  NULL};
    char **out = proc_environment(env, NULL);
    assert_string_equal(out[0], "PATH=/bin");
    assert_string_equal(out[1], "LD_LIBRARY_PATH=/x");
    assert_string_equal(out[2], "OMP_NUM_THREADS=1");
    assert_null(out[3]);
    free(out);
    out = proc_environment(env, "slow-step:5");
    assert_string_equal(out[3], "MPISERVE_FAULT=slow-step:5");
    assert_null(out[4]);
    free(out);
}

static int setup(void **state)
{
    (void)state;
    struct error err = {0};
    char path[PATH_LEN + 32];
    const char *tests = getenv("MPISERVE_TESTS"), *name = getenv("PROGRAM");
    snprintf(program, sizeof(program), "./%s", name ? name : "mpiserve");
    snprintf(model, sizeof(model), "%s/reference/models/llama_tied_llama3", tests ? tests : "tests");
    snprintf(path, sizeof(path), "%s/reference.json", model);
    struct json *root = json_read_file(path, 1 << 24, &err);
    need(root != NULL, &err);
    const struct json *from = json_item(json_get(root, "prompts"), 1), *ids = json_get(from, "ids");
    n_prompt = (u32)json_len(ids);
    BUG_ON(n_prompt > 64 || n_prompt + TOKENS > LONGEST);
    for (u32 i = 0; i < n_prompt; i++) prompt[i] = (i32)json_int(json_item(ids, i), -1);
    for (u32 i = 0; i < TOKENS; i++)
        greedy[i] = (i32)json_int(json_item(json_get(json_get(from, "greedy"), "ids"), i), -1);
    json_drop(root);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(restarts),
        cmocka_unit_test(limits),
        cmocka_unit_test(environments),
        cmocka_unit_test(memory),
        cmocka_unit_test(killed_and_replayed),
        cmocka_unit_test(stale_steps),
        cmocka_unit_test(ignored_signals),
        cmocka_unit_test(inheritance),
        cmocka_unit_test(agent_dies),
        cmocka_unit_test(crash_and_hang),
        cmocka_unit_test(stopped_engine),
        cmocka_unit_test(engines_that_cannot_start),
        cmocka_unit_test(shared_weights),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, NULL);
}
