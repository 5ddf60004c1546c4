/* Where a job writes and what it may open: /dev/shm, the temporary folder, descriptors; and who starts it. */
#include "cli/doctor.h"
#include "mpiserve/jobdir.h"
#include "mpiserve/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <unistd.h>

enum { USUAL_RANKS = 8 };
static const double MB = 1e6;

/* By statfs's magic number. */
static const struct file_system {
    u64 magic;
    const char *name;
    bool network;
} file_systems[] = {
    {0x01021994, "tmpfs", false}, {0xef53, "ext", false},         {0x58465342, "xfs", false},
    {0x9123683e, "btrfs", false}, {0x794c7630, "overlay", false}, {0x2fc12fc1, "zfs", false},
    {0xf2f52010, "f2fs", false},  {0x858458f6, "ramfs", false},   {0x6969, "NFS", true},
    {0x0bd00bd0, "Lustre", true}, {0x47504653, "GPFS", true},     {0x19830326, "BeeGFS", true},
    {0xff534d42, "CIFS", true},   {0xfe534d42, "SMB", true},      {0x00c36400, "Ceph", true},
    {0x5346414f, "AFS", true},    {0x65735546, "FUSE", true},     {0x01021997, "9p", true},
    {0xaad7aaea, "PanFS", true},
};

static const struct file_system *find_file_system(const char *folder)
{
    static const struct file_system other = {0, "file system of another kind", false};
    struct statfs fs;
    if (statfs(folder, &fs) < 0) return NULL;
    for (size_t i = 0; i < COUNT_OF(file_systems); i++)
        if (file_systems[i].magic == ((u64)fs.f_type & 0xffffffff)) return &file_systems[i];
    return &other;
}

/* 0, or why no file can be written there. */
static int try_writing(const char *folder)
{
    char path[PATH_LEN + 32];
    snprintf(path, sizeof(path), "%.1000s/mpiserve-doctor-XXXXXX", folder);
    int fd = mkostemp(path, O_CLOEXEC), why = errno;
    if (fd < 0) return why;
    why = write(fd, path, 1) == 1 ? 0 : errno;
    unlink(path);
    close(fd);
    return why;
}

/* Says what it is and how much is left; false when nothing can be written there. */
static bool look_at_folder(struct finding *f, const char *folder, u64 *room)
{
    const struct file_system *fs = find_file_system(folder);
    int why = fs ? try_writing(folder) : errno;
    *room = fs ? file_room(folder) : 0;
    if (why) {
        finding_say(f, "%.150s: %s", folder, strerror(why));
        return false;
    }
    finding_say(f, "%.120s: %s, ", folder, fs->name);
    if (*room == UINT64_MAX) return true;
    finding_say(f, "%.0f MB left", (double)*room / MB);
    finding_number(f, "free_bytes", (double)*room);
    return true;
}

void doctor_shm(struct report *r)
{
    struct finding *f = finding_add(r, "/dev/shm");
    u64 room;
    if (!look_at_folder(f, "/dev/shm", &room)) {
        finding_judge(f, PROBLEM, "MPI's ranks share memory there: mount a tmpfs that you may write in");
        return;
    }
    u64 ranks = room / wire_shm_least(1);
    finding_number(f, "ranks", (double)MIN_OF(ranks, (u64)1 << 20));
    if (ranks > 4096) return;
    finding_say(f, ": enough for %llu rank%s", (unsigned long long)ranks, ranks == 1 ? "" : "s");
    if (ranks < USUAL_RANKS)
        finding_judge(f, ranks < 2 ? PROBLEM : WARNING,
                      "enlarge it: docker run --shm-size=256m; mount -o remount,size=256m /dev/shm");
}

static const char *temporary_folder(void)
{
    const char *folder = getenv("TMPDIR");
    return folder && *folder ? folder : "/tmp";
}

static void look_at_sockets(struct report *r, const char *folder)
{
    struct finding *f = finding_add(r, "socket paths");
    char path[2 * PATH_LEN];
    int len = snprintf(path, sizeof(path), "%.1000s/mpiserve-%u/01234567-node100", folder, geteuid());
    finding_say(f, "a job's folder has %d bytes, %d are possible", len, JOBDIR_PATH_MAX);
    finding_number(f, "bytes", len);
    if (len > JOBDIR_PATH_MAX) finding_judge(f, PROBLEM, "choose a shorter TMPDIR (or --run-dir)");
}

void doctor_temporary(struct report *r)
{
    const char *folder = temporary_folder();
    struct finding *f = finding_add(r, "temporary folder");
    u64 room;
    const struct file_system *fs = find_file_system(folder);
    if (!look_at_folder(f, folder, &room))
        finding_judge(f, PROBLEM, "choose another with TMPDIR");
    else if (room < JOBDIR_ROOM)
        finding_judge(f, PROBLEM,
                      "MPI and the job need %d MB there: make room, or choose another with TMPDIR",
                      JOBDIR_ROOM >> 20);
    else if (fs && fs->network)
        finding_judge(f, WARNING,
                      "it is not on this machine: MPI's session files and sockets want a local one, choose "
                      "it with TMPDIR");
    look_at_sockets(r, folder);
}

void doctor_files(struct report *r)
{
    enum { BASE = 104, CONNECTIONS = 1024 };
    struct finding *f = finding_add(r, "open files");
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
    finding_number(f, "soft", (double)limit.rlim_cur);
    finding_number(f, "hard", (double)limit.rlim_max);
    finding_say(f, "%llu, raised to %llu by jobs", (unsigned long long)limit.rlim_cur,
                (unsigned long long)MIN_OF(limit.rlim_max, (rlim_t)65536));
    if (limit.rlim_max < BASE)
        finding_judge(
            f, PROBLEM,
            "no rank runs with so few: raise the hard limit (limits.conf, docker run --ulimit nofile=65536)");
    else if (limit.rlim_max < BASE + CONNECTIONS)
        finding_judge(f, WARNING,
                      "too few for --max-connections %d: raise the hard limit, else only %llu are served at "
                      "the same time",
                      CONNECTIONS, (unsigned long long)limit.rlim_max - BASE);
}

/* ---- who starts jobs ----------------------------------------------------------------------------------------------*/
static bool in_path(const char *program)
{
    char path[PATH_LEN];
    for (const char *p = getenv("PATH"); p && *p; p += strcspn(p, ":"), p += *p == ':') {
        snprintf(path, sizeof(path), "%.*s/%s", (int)MIN_OF(strcspn(p, ":"), sizeof(path) - 64), p, program);
        if (access(path, X_OK) == 0) return true;
    }
    return false;
}

void doctor_slurm(struct report *r)
{
    struct finding *f = finding_add(r, "Slurm and PMIx");
    const char *job = getenv("SLURM_JOB_ID"), *nodes = getenv("SLURM_JOB_NUM_NODES"),
               *tasks = getenv("SLURM_NTASKS");
    if (job)
        finding_say(f, "inside job %.20s: %.12s nodes, %.12s tasks", job, nodes ? nodes : "?",
                    tasks ? tasks : "?");
    else if (in_path("sbatch"))
        finding_say(f, "installed; this is not inside a job (sbatch slurm/serve.slurm starts one)");
    else
        finding_say(f, "none");
    if (getenv("PMIX_RANK")) finding_say(f, "; rank %.12s of PMIx", getenv("PMIX_RANK"));
    if (getenv("SLURM_STEP_ID") && !getenv("PMIX_RANK") && !getenv("OMPI_COMM_WORLD_RANK"))
        finding_judge(f, WARNING, "this step was started without PMIx: ranks in it need `srun --mpi=pmix`");
}
