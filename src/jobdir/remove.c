/* Removing the folders of a job: by their owner, by the tidier, and those of dead jobs that a start finds. */
#include "jobdir/owner.h"

#include <dirent.h>
#include <ftw.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    remove(path);
    return 0;
}

void remove_tree(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

void remove_own_files(const char *folder)
{
    static const char *const names[] = {"endpoint.json", "key", "pids", "session"};
    char path[2 * PATH_LEN];
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        unlink(path);
        snprintf(path, sizeof(path), "%s/%s.new", folder, names[i]);
        unlink(path);
    }
    snprintf(path, sizeof(path), "%s/mpi", folder);
    remove_tree(path);
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (strncmp(e->d_name, "bell.", 5) != 0) continue;
        snprintf(path, sizeof(path), "%s/%s", folder, e->d_name);
        unlink(path);
    }
    if (dir) closedir(dir);
    snprintf(path, sizeof(path), "%s/owner", folder); /* the last: until then nobody else may come in */
    unlink(path);
}

void jobdir_remove(const struct jobdir *d)
{
    if (d->shm[0]) remove_tree(d->shm);
    if (d->given && d->path[0])
        remove_own_files(d->path);
    else if (d->path[0])
        remove_tree(d->path);
    if (d->given || !d->path[0]) return;
    char parent[PATH_LEN];
    snprintf(parent, sizeof(parent), "%s", d->path);
    *strrchr(parent, '/') = 0;
    rmdir(parent); /* when it was the last */
}

/* MPI's own session folder, which the file `session` in this folder names, if its launcher is dead. */
static void session_remove_dead(const char *folder)
{
    struct session s;
    if (!session_read(folder, &s) || !session_ended(&s)) return;
    remove_tree(s.path);
    char *parent = dirname(s.path); /* Open MPI 4 has a folder for all sessions of a user */
    if (strncmp(basename(parent), "ompi.", 5) == 0) rmdir(parent);
}

/* Only the file `owner`, or less. */
static bool others_have_left(const char *folder)
{
    int n = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));)
        n += e->d_name[0] != '.' && strcmp(e->d_name, "owner") != 0;
    if (dir) closedir(dir);
    return n == 0;
}

void jobdir_remove_last(const struct jobdir *d, int limit_ms)
{
    for (int ms = 0; d->shm[0] && !others_have_left(d->shm) && ms < limit_ms; ms++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000l}, NULL);
    jobdir_remove(d);
}

/* There, and nobody's any more. */
static bool is_dead(const char *folder)
{
    struct owner o;
    return folder[0] && owner_read(folder, &o) && owner_gone(&o);
}

/* Never had an owner, or had one that did not come to write it: who makes a folder does so at once. */
static bool is_ownerless(const char *folder, const struct stat *st)
{
    enum { OLD_S = 60 };
    struct owner o;
    return !owner_read(folder, &o) && time(NULL) > st->st_mtime + OLD_S;
}

void jobdir_remove_dead_shm(const struct jobdir *d)
{
    if (is_dead(d->shm)) remove_tree(d->shm);
}

void jobdir_remove_dead(const struct jobdir *d)
{
    struct jobdir part = *d;
    part.shm[0] = 0;
    jobdir_remove_dead_shm(d);
    if (!is_dead(d->path)) return;
    session_remove_dead(d->path);
    jobdir_remove(&part);
}

/* Folders of ours in `parent` whose names start with prefix: those whose owner is gone are removed. */
struct swept {
    int removed, left;
};

static void sweep(const char *parent, const char *prefix, struct swept *n)
{
    struct stat st;
    DIR *dir = opendir(parent);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char path[PATH_LEN];
        if (e->d_name[0] == '.' || strncmp(e->d_name, prefix, strlen(prefix)) != 0) continue;
        if (path_join(path, sizeof(path), NULL, "%s/%s", parent, e->d_name) < 0) continue;
        if (lstat(path, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid()) continue;
        if (is_dead(path) || is_ownerless(path, &st)) {
            session_remove_dead(path);
            remove_tree(path);
            n->removed++;
        } else {
            n->left++;
        }
    }
    if (dir) closedir(dir);
}

/* Of the job, or ("") of all jobs. parents: folders that are empty then go, too. */
static struct swept sweep_all(const char *job, bool parents)
{
    const char *places[] = {temporary_folder(), "/tmp"};
    char path[PATH_LEN], prefix[64 + JOB_NAME_LEN];
    struct swept n = {0};
    for (size_t i = 0; i < COUNT_OF(places); i++)
        if (path_join(path, sizeof(path), NULL, "%s/mpiserve-%u", places[i], geteuid()) == 0) {
            sweep(path, job, &n);
            if (parents) rmdir(path);
        }
    snprintf(prefix, sizeof(prefix), "mpiserve-%u-%s", geteuid(), job);
    sweep(SHM_FOLDER, prefix, &n);
    return n;
}

int jobdir_sweep(void)
{
    return sweep_all("", false).removed;
}

int jobdir_sweep_job(const char *job, int limit_ms)
{
    enum { LOOK_MS = 20 };
    struct swept n = sweep_all(job, true);
    for (int ms = 0; n.left && ms < limit_ms; ms += LOOK_MS) {
        nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * 1000000l}, NULL);
        n = sweep_all(job, true);
    }
    return n.left;
}
