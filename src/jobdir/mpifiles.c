/* What MPI itself makes on a machine for a job that nobody watches over (a bare mpirun): noted while the job lives, removed when its
 * processes were killed and the next start finds the folder without an owner. */
#include "mpiserve/jobdir.h"

#include "jobdir/owner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char file_name[] = "mpi-files";

/* Shared memory that this process has mapped by name; not the job's own folder there, which is swept anyway. */
static void note_shared_memory(struct buf *lines)
{
    FILE *f = fopen("/proc/self/maps", "re");
    char line[PATH_LEN + 128], last[PATH_LEN] = "";
    while (f && fgets(line, sizeof(line), f)) {
        char *path = strstr(line, " /dev/shm/");
        if (!path || strstr(path, "(deleted)")) continue;
        path++;
        path[strcspn(path, "\n")] = 0;
        if (strcmp(path, last) == 0 || strchr(path + strlen("/dev/shm/"), '/')) continue;
        snprintf(last, sizeof(last), "%s", path);
        buf_printf(lines, "%s\n", path);
    }
    if (f) fclose(f);
}

int jobdir_note_mpi(const struct jobdir *d, struct error *err)
{
    struct buf lines = {0};
    char path[2 * PATH_LEN];
    const char *session = getenv("PMIX_SERVER_TMPDIR");
    note_shared_memory(&lines);
    if (session && session[0] == '/') buf_printf(&lines, "%s\n", session);
    snprintf(path, sizeof(path), "%s/%s", d->path, file_name);
    int rc = lines.len ? file_write_whole(path, lines.data, lines.len, 0600, err) : 0;
    buf_release(&lines);
    return rc;
}

/* Only what looks like MPI's and is ours: a file in /dev/shm, a launcher's session folder. */
static bool is_mpis(const char *path)
{
    struct stat st;
    const char *base = strrchr(path, '/');
    if (!base || lstat(path, &st) < 0 || st.st_uid != geteuid() || strstr(path, "/../")) return false;
    if (S_ISREG(st.st_mode)) return strncmp(path, "/dev/shm/", 9) == 0 && strstr(base, "_segment.");
    return S_ISDIR(st.st_mode) && (strncmp(base, "/pid.", 5) == 0 || strncmp(base, "/dvm.", 5) == 0);
}

void mpifiles_remove(const char *folder)
{
    struct buf text = {0};
    char path[2 * PATH_LEN];
    snprintf(path, sizeof(path), "%s/%s", folder, file_name);
    if (file_read(path, 1 << 20, &text, NULL) == 0 && text.data)
        for (char *save, *line = strtok_r(text.data, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
            if (is_mpis(line)) tree_remove(line);
    buf_release(&text);
    unlink(path);
}
