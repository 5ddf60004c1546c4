/* Inside of cli/: the parts of `mpiserve up`. */
#ifndef CLI_UP_H
#define CLI_UP_H

#include "mpiserve/config.h"
#include "mpiserve/jobdir.h"

#include <sys/types.h>

/* ---- launch.c: starting mpirun ----------------------------------------------------------------------------------*/
/* What was typed: argv[first .. argc) are options of up and of the ranks; behind "--" stand arguments for mpirun. */
struct command_line {
    int argc, first, n_mpirun;
    char **argv, **mpirun;
};
/* Starts mpirun in a process group of its own, tied to this process's life, with its output appended to log. *pid is its
 * process. The ranks get the options less what is up's own. */
int launch(const struct config *c, const struct jobdir *d, int log, const struct command_line *line,
           pid_t *pid, struct error *err);
/* Its parts: what mpirun finds in the environment; arguments[0] in a process group of its own that ends with this process, with its
 * output appended to log. */
int launch_environment(const struct jobdir *d, struct error *err);
int launch_start(const char **arguments, int log, pid_t *pid, struct error *err);

/* ---- loading.c: weights that take longer than a second --------------------------------------------------------------*/
/* Engines say in the log how far they are; here all of them together: a bar on a terminal, which has to be hidden while anything else
 * is written there; else a line every 10 seconds. */
struct loading {
    struct loading_engine {
        u64 id, done, of; /* id: of its name; megabytes */
        double speed;     /* GB/s */
    } * engines;
    size_t n;
    bool terminal, drawn, changed;
    u64 shown_ns;
};
void loading_init(struct loading *l, bool terminal);
void loading_note(struct loading *l,
                  const char *line); /* a line of the log, NUL-terminated, of whatever kind */
void loading_show(struct loading *l, u64 now_ns);
void loading_hide(struct loading *l);
void loading_release(struct loading *l);

/* ---- tail.c: what the ranks print ---------------------------------------------------------------------------------*/
/* Shows new lines of the log on stderr: warnings, errors, and everything that is not a log line (crashes, messages of
 * mpirun). */
struct tail {
    int fd;
    struct buf line; /* the last, still unfinished one */
    u64 shown;       /* lines shown so far */
    u64 errors;      /* of them, errors */
    bool in_box;
    struct loading loading; /* fed with every line; shown by the caller */
};
int tail_init(struct tail *t, const char *path, struct error *err);
void tail_more(struct tail *t);              /* shows what was added since */
void tail_last(const struct tail *t, int n); /* shows the last n lines, whatever they are */
void tail_release(struct tail *t);

/* ---- publish.c: what the job shows ----------------------------------------------------------------------------------*/
/* Copies of endpoint file and key in the folder of --publish, from PENDING to DOWN. {0}: nothing is published. */
struct publish {
    struct jobdir to;     /* path "": nothing is published */
    struct endpoint last; /* as written */
};
int publish_start(struct publish *p, const struct config *c, const struct jobdir *d, struct error *err);
void publish_change(struct publish *p, struct endpoint *e); /* e->key_file becomes the published one */
void publish_end(struct publish *p);                        /* DOWN; the key goes */
void say_ready(const struct endpoint *e, const char *log_folder, double seconds);

/* ---- sweep.c: what was killed leaves files --------------------------------------------------------------------------*/
/* In a Slurm job of several nodes: removes on the others what the job left there; some seconds at most. */
void sweep_nodes(const char *job);

/* ---- ranks.c: the processes of the job -----------------------------------------------------------------------------*/
struct ranks {
    struct watched {
        int rank, pid, fd; /* fd: a pidfd; -1: gone */
    } * list;
    int n, n_gone;
    int first_gone; /* index, or -1 */
};
void ranks_init(struct ranks *r);
/* Reads the file `pids` (once) and adds a pidfd for each to epoll, with data = base + index. 0: not there yet. */
int ranks_watch(struct ranks *r, const struct jobdir *d, int epoll_fd, u64 base);
void ranks_gone(struct ranks *r, int index, int epoll_fd);
void ranks_signal(const struct ranks *r, int sig); /* to all that live */
void ranks_release(struct ranks *r);
/* Kills every process below this one and waits for it, for at most limit_ms; returns how many were killed. */
int children_end(int limit_ms);

#endif
