/* mpiserve up: from the start of a job to its last trace. */
#include "cli/up.h"
#include "mpiserve/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum phase { STARTING, READY, DRAINING, ENDING };
enum event { EVENT_SIGNAL, EVENT_FILE, EVENT_RANK }; /* EVENT_RANK + index */
enum {
    LOST_GRACE_MS = 250, /* a rank is gone: so long do the others have to be on their way out too */
    LEAVE_MS = 1500,     /* before it is ready: ranks end one after the other when one has said why */
    TELL_MS = 3000,      /* all ranks here are gone: so long may mpirun take to say what it knows */
    END_GRACE_MS = 1200, /* ranks write their last words after SIGTERM; mpirun gives them a second */
    DRAIN_MORE_MS = 5000,
    EXIT_OPTIONS = 2,
    EXIT_INTERRUPTED = 130,
};

struct up {
    struct config config;
    struct jobdir dir;
    struct tail tail;
    struct ranks ranks;
    struct endpoint endpoint;
    struct publish publish;
    enum phase phase;
    int epoll_fd, signal_fd, notify_fd;
    pid_t mpirun;
    int status;  /* of mpirun, once it has ended */
    bool ended;  /* mpirun has */
    bool lost;   /* a rank died that should not have */
    bool told;   /* mpirun had its time to say so */
    bool killed; /* ended by force */
    u64 started_ns;
    u64 deadline_ns; /* of the phase; 0: none */
};

/* A published log can be read while the job runs, and when the machines are gone. */
static const struct jobdir *log_folder(const struct up *u)
{
    return u->publish.to.path[0] ? &u->publish.to : &u->dir;
}

static bool prepare(struct up *u, struct error *err)
{
    sigset_t set;
    struct epoll_event on_signal = {.events = EPOLLIN, .data.u64 = EVENT_SIGNAL};
    struct epoll_event on_file = {.events = EPOLLIN, .data.u64 = EVENT_FILE};
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGCHLD);
    signal(SIGPIPE, SIG_IGN);
    /* Processes of the job whose parent dies become ours, so that none can be lost from sight. */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (sigprocmask(SIG_BLOCK, &set, NULL) == 0 &&
        (u->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)) >= 0 &&
        (u->notify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) >= 0 &&
        inotify_add_watch(u->notify_fd, u->dir.path, IN_MOVED_TO | IN_MODIFY) >= 0 &&
        inotify_add_watch(u->notify_fd, log_folder(u)->path, IN_MOVED_TO | IN_MODIFY) >= 0 &&
        (u->epoll_fd = epoll_create1(EPOLL_CLOEXEC)) >= 0 &&
        epoll_ctl(u->epoll_fd, EPOLL_CTL_ADD, u->signal_fd, &on_signal) == 0 &&
        epoll_ctl(u->epoll_fd, EPOLL_CTL_ADD, u->notify_fd, &on_file) == 0)
        return true;
    error_errno(err, u->dir.path, "cannot watch the folder and signals");
    return false;
}

static bool start(struct up *u, const struct command_line *line, struct error *err)
{
    char log[PATH_LEN + 16];
    jobdir_file(log_folder(u), "run.log", log, sizeof(log));
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) {
        error_errno(err, log, "cannot make the log");
        return false;
    }
    bool ok =
        tail_init(&u->tail, log, err) == 0 && launch(&u->config, &u->dir, fd, line, &u->mpirun, err) == 0;
    close(fd);
    return ok;
}

/* ---- what people see ---------------------------------------------------------------------------------------------*/
static void say_failed(const struct up *u)
{
    if (!u->tail.errors && !u->tail.shown) tail_last(&u->tail, 10);
    if (WIFSIGNALED(u->status) && !u->killed)
        log_error("mpirun was ended by signal %d (%s)", WTERMSIG(u->status), strsignal(WTERMSIG(u->status)));
    static const char *const what[] = {
        [STARTING] = "the job did not start",
        [READY] = "the job ended without being asked to",
        [DRAINING] = "the job did not end cleanly",
        [ENDING] = "the job was ended",
    };
    log_error("%s", what[u->phase]);
}

/* The log of a job that failed is worth more than tidiness: the last one is kept. */
static void keep_log(const struct up *u)
{
    char from[PATH_LEN + 16], to[PATH_LEN + 16];
    const struct jobdir *folder = log_folder(u);
    bool stays = folder != &u->dir || folder->given;
    jobdir_file(folder, "run.log", from, sizeof(from));
    if (!stays) {
        snprintf(to, sizeof(to), "%s", u->dir.path);
        snprintf(strrchr(to, '/'), 20, "/last-failure.log");
        if (rename(from, to) < 0) return;
    }
    log_info("its log: %s", stays ? from : to);
}

/* ---- phases ------------------------------------------------------------------------------------------------------*/
static void enter(struct up *u, enum phase phase, u64 limit_ms)
{
    u->phase = phase;
    u->deadline_ns = limit_ms ? clock_ns() + limit_ms * NS_PER_MS : 0;
}

/* Ranks are tied to mpirun, engines to ranks: one signal ends them all. */
static void kill_job(struct up *u)
{
    u->killed = true;
    if (!u->ended) kill(-u->mpirun, SIGKILL);
}

static void asked_to_stop(struct up *u, int sig)
{
    if (u->phase == READY) {
        log_info("draining: running requests have %g s to finish%s", u->config.graceful_shutdown_timeout_s,
                 sig == SIGUSR1 ? "" : "; once more ends them");
        enter(u, DRAINING, (u64)(u->config.graceful_shutdown_timeout_s * 1000) + DRAIN_MORE_MS);
        if (!u->ended) kill(u->mpirun, SIGUSR1); /* mpirun hands it to every rank */
    } else if (u->phase == DRAINING && u->ranks.n) {
        enter(u, ENDING, END_GRACE_MS);
        ranks_signal(&u->ranks, SIGTERM);
    } else { /* nothing runs yet, or it takes too long */
        enter(u, ENDING, 0);
        kill_job(u);
    }
}

static void on_signals(struct up *u)
{
    struct signalfd_siginfo info;
    while (read(u->signal_fd, &info, sizeof(info)) == sizeof(info))
        if (info.ssi_signo == SIGUSR1 ? u->phase < DRAINING : info.ssi_signo != SIGCHLD)
            asked_to_stop(u, (int)info.ssi_signo);
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        if (pid == u->mpirun) {
            u->ended = true;
            u->status = status;
        }
}

static void on_files(struct up *u)
{
    char events[4096] __attribute__((aligned(__alignof__(struct inotify_event))));
    while (read(u->notify_fd, events, sizeof(events)) > 0) continue;
    tail_more(&u->tail);
    ranks_watch(&u->ranks, &u->dir, u->epoll_fd, EVENT_RANK);
    struct endpoint e;
    if (endpoint_read(&u->dir, &e, NULL) < 0) return;
    bool changed = e.state != u->endpoint.state;
    if (changed)
        publish_change(&u->publish, &e);
    else
        e = u->endpoint;
    u->endpoint = e;
    if (u->phase == STARTING && e.state == ENDPOINT_READY) {
        enter(u, READY, 0);
        say_ready(&e, log_folder(u)->path, (double)(clock_ns() - u->started_ns) / 1e9);
    }
    if (u->phase == READY && e.state == ENDPOINT_DRAINING) {
        log_info("draining: running requests finish, then the job ends");
        enter(u, DRAINING, (u64)(u->config.graceful_shutdown_timeout_s * 1000) + DRAIN_MORE_MS);
    }
}

static bool end_is_wanted(const struct up *u)
{
    return u->phase >= DRAINING || u->endpoint.state >= ENDPOINT_DRAINING;
}

static void on_rank(struct up *u, int index)
{
    ranks_gone(&u->ranks, index, u->epoll_fd);
    if (end_is_wanted(u) || u->lost) return;
    /* mpirun takes seconds to end the others; but let it, if all are ending by themselves. */
    u->lost = true;
    u->deadline_ns = clock_ns() + (u->phase == STARTING ? LEAVE_MS : LOST_GRACE_MS) * NS_PER_MS;
}

static void on_deadline(struct up *u)
{
    u->deadline_ns = 0;
    if (u->lost && !u->told && u->phase < DRAINING && u->ranks.n_gone == u->ranks.n) {
        u->told = true;
        u->deadline_ns = clock_ns() + TELL_MS * NS_PER_MS;
        return;
    }
    bool told = u->phase == STARTING && u->tail.errors; /* why; that the others end is what follows */
    if (u->lost && !told && u->phase < DRAINING && u->ranks.n_gone < u->ranks.n) {
        const struct watched *w = &u->ranks.list[u->ranks.first_gone];
        log_error("rank %d (process %d) died", w->rank, w->pid);
    } else if (u->phase == DRAINING) {
        log_warning("the job does not end in time: ending it");
    }
    kill_job(u);
}

static void wait_for_end(struct up *u)
{
    struct epoll_event events[16];
    while (!u->ended) {
        u64 now = clock_ns();
        int timeout = -1;
        if (u->deadline_ns)
            timeout = u->deadline_ns > now ? (int)((u->deadline_ns - now) / NS_PER_MS + 1) : 0;
        int n = epoll_wait(u->epoll_fd, events, COUNT_OF(events), timeout);
        loading_hide(&u->tail.loading);
        for (int i = 0; i < n; i++) {
            u64 which = events[i].data.u64;
            if (which == EVENT_SIGNAL)
                on_signals(u);
            else if (which == EVENT_FILE)
                on_files(u);
            else
                on_rank(u, (int)(which - EVENT_RANK));
        }
        if (u->deadline_ns && clock_ns() >= u->deadline_ns) on_deadline(u);
        if (u->phase == STARTING && !u->ended) loading_show(&u->tail.loading, clock_ns());
    }
    on_files(u); /* the last words */
}

static int finish(struct up *u)
{
    bool clean = WIFEXITED(u->status) && WEXITSTATUS(u->status) == 0 && !u->killed;
    children_end(2000);
    tail_more(&u->tail);
    if (clean && u->phase == STARTING && u->endpoint.state < ENDPOINT_READY) clean = false;
    if (u->phase == ENDING) return EXIT_INTERRUPTED;
    if (clean && (u->phase == DRAINING || end_is_wanted(u))) {
        log_info("stopped");
        return 0;
    }
    say_failed(u);
    keep_log(u);
    return 1;
}

static int run(struct up *u, const struct command_line *line)
{
    struct error err;
    char text[1024];
    int status = 1;
    u->started_ns = clock_ns();
    if (publish_start(&u->publish, &u->config, &u->dir, &err) == 0 && prepare(u, &err) &&
        start(u, line, &err)) {
        log_info("starting %lld ranks of %s; log: %s/run.log", (long long)u->config.ranks,
                 u->config.served_model_name[0], log_folder(u)->path);
        wait_for_end(u);
        status = finish(u);
    } else {
        log_error("%s", error_text(&err, text, sizeof(text)));
    }
    publish_end(&u->publish);
    if (status != 0 && u->mpirun > 0) sweep_nodes(u->dir.job);
    ranks_release(&u->ranks);
    tail_release(&u->tail);
    jobdir_remove(&u->dir);
    return status;
}

static struct command_line split(int argc, char **argv)
{
    struct command_line line = {.argc = 2, .first = 2, .argv = argv};
    while (line.argc < argc && strcmp(argv[line.argc], "--") != 0) line.argc++;
    if (line.argc < argc) {
        line.mpirun = argv + line.argc + 1;
        line.n_mpirun = argc - line.argc - 1;
    }
    return line;
}

/* What mpirun would stumble over with many words, or without any. */
static int check_ground(const struct config *c, struct error *err)
{
    enum { FILES = 48, FILES_PER_RANK = 8 }; /* of mpirun: pipes and sockets */
    jobdir_sweep();
    i64 rc = file_limit(FILES + FILES_PER_RANK * (u64)c->ranks, err);
    return rc < 0 ? (int)rc : jobdir_check_room(JOBDIR_ROOM, err);
}

int cli_up(int argc, char **argv)
{
    struct command_line line = split(argc, argv);
    struct up u = {.epoll_fd = -1, .signal_fd = -1, .notify_fd = -1, .tail.fd = -1};
    struct error err;
    char text[1024];
    log_setup(LOG_INFO, "");
    ranks_init(&u.ranks);
    int rc = config_load(&u.config, line.argc, argv, line.first, &err);
    if (rc > 0) return 0;
    if (u.config.ranks == 0) u.config.ranks = CONFIG_RANKS;
    for (int i = 0; rc == 0 && i < u.config.n_notes; i++) log_info("%s", u.config.notes[i]);
    if (rc < 0) {
        log_error("%s", error_text(&err, text, sizeof(text)));
        return EXIT_OPTIONS;
    }
    if (check_ground(&u.config, &err) < 0 || jobdir_make(&u.dir, u.config.run_dir, &err) < 0) {
        log_error("%s", error_text(&err, text, sizeof(text)));
        return 1;
    }
    return run(&u, &line);
}
