/* MPI's shared memory lies in files of /dev/shm that get their pages when they are first touched: in a full one that is SIGBUS. So
 * room is looked for before MPI starts. Containers often have 64 MB there. */
#include "wire/wire_inner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SEGMENT_LEAST = 1 << 20, /* of a rank: queues for 128 peers and the messages on their way */
    SEGMENT_MORE = 64 << 10, /* what else it has there: its part of windows */
};

/* By the library's version: the option that says how large a rank's segment is, and where; the size without it. */
static const struct segment {
    const char *library, *size, *folder;
    u64 usual;
} segments[] = {
    {"Open MPI v4.", "OMPI_MCA_btl_vader_segment_size", "OMPI_MCA_btl_vader_backing_directory", 4 << 20},
    {"Open MPI v5.", "OMPI_MCA_btl_sm_segment_size", "OMPI_MCA_btl_sm_backing_directory", 16 << 20},
};

u64 wire_shm_least(u32 ranks)
{
    return (u64)ranks * (SEGMENT_LEAST + SEGMENT_MORE);
}

static const char *set_or(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

int wire_check_shm(const char *library, struct error *err)
{
    const char *local = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    u32 ranks = local && atoi(local) > 0 ? (u32)atoi(local) : 1;
    for (size_t i = 0; i < COUNT_OF(segments); i++) {
        const struct segment *s = &segments[i];
        if (strncmp(library, s->library, strlen(s->library)) != 0 || getenv(s->size)) continue;
        const char *folder = set_or(s->folder, "/dev/shm");
        u64 room = file_room(folder), each = room / ranks;
        if (each >= s->usual + SEGMENT_MORE) continue;
        if (room < wire_shm_least(ranks))
            return error_set(
                err, ERR_IO, strncmp(folder, "/dev/shm/", 9) ? folder : "/dev/shm",
                "has %llu KB left, MPI needs %llu for the %u ranks of this machine: enlarge it (docker run "
                "--shm-size=256m; mount -o remount,size=256m), remove what lies there, or start fewer ranks",
                (unsigned long long)(room >> 10), (unsigned long long)(wire_shm_least(ranks) >> 10), ranks);
        char size[24];
        snprintf(size, sizeof size, "%llu", (unsigned long long)(each - SEGMENT_MORE) & ~4095ull);
        setenv(s->size, size, 0);
    }
    return 0;
}
