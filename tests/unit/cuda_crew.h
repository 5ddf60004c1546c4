/* The engines of a replica as processes of a test, each with a GPU (emulated) of its own and its way to the others': as crew.h, but for
 * threads. An engine that fails says so on stderr and dies, and with it the test. */
#ifndef MPISERVE_TESTS_CUDA_CREW_H
#define MPISERVE_TESTS_CUDA_CREW_H

#include "crew.h"
#include "cuda_world.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct cuda_member { /* what an engine has */
    struct coll_world *world;
    u32 me;
    struct device *device;
    struct coll_nccl *gpus; /* opened by cuda_connect */
};
typedef void (*cuda_crew_fn)(struct cuda_member *m, void *arg);

/* Memory that all engines and the test see, zeroed. */
static inline void *cuda_crew_memory(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    crew_need(at != MAP_FAILED, NULL);
    return at;
}

static inline struct device *cuda_open_number(u32 n)
{
    char uuid[] = "GPU-63756461-7369-6d2d-6465-766963652d30";
    struct error err = {0};
    crew_need(n < 8, NULL);
    setenv("CUDASIM_DEVICES", "8", 1);
    unsetenv("CUDA_VISIBLE_DEVICES"); /* names the machine's own */
    uuid[sizeof uuid - 2] = (char)('0' + n);
    struct device *d = device_open(uuid, &err);
    crew_need(d != NULL, &err);
    return d;
}

static inline int cuda_look(void *arg, u64 waited_ns, struct error *err)
{
    struct cuda_member *m = arg;
    return coll_nccl_look(m->gpus, device_marked(m->device), waited_ns, err);
}

/* wait_ns 0: long. */
static inline int cuda_connect(struct cuda_member *m, u64 wait_ns, struct error *err)
{
    const struct coll_gpu gpu = {device_stream_handle(m->device), device_info(m->device)->uuid,
                                 wait_ns ? wait_ns : 60 * NS_PER_S};
    const struct device_watch watch = {cuda_look, m};
    m->gpus = coll_nccl_open(m->world, &gpu, err);
    return m->gpus ? device_watch(m->device, &watch, err) : err->code;
}

static inline _Noreturn void cuda_crew_child(struct crew *c, u32 me, cuda_crew_fn fn)
{
    struct error err = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct cuda_member m = {.world = crew_world(c, me, &err), .me = me};
    crew_need(m.world != NULL, &err);
    m.device = cuda_open_number(me);
    fn(&m, c->arg);
    coll_nccl_close(m.gpus);
    device_close(m.device);
    coll_close(m.world);
    crew_need(cudasim_allocated() == 0, NULL);
    fflush(NULL);
    _exit(0);
}

/* fn in a process for each engine, until all have ended. */
static inline void cuda_crew_run(struct crew *c, cuda_crew_fn fn)
{
    pid_t pids[COLL_MAX];
    crew_map(c);
    fflush(NULL);
    for (u32 i = 0; i < c->n; i++) {
        pids[i] = fork();
        crew_need(pids[i] >= 0, NULL);
        if (pids[i] == 0) cuda_crew_child(c, i, fn);
    }
    bool fine = true;
    for (u32 left = c->n; left; left--) {
        int status;
        pid_t ended = wait(&status);
        crew_need(ended > 0, NULL);
        for (u32 i = 0; i < c->n; i++)
            if (pids[i] == ended) pids[i] = 0;
        for (u32 i = 0; i < c->n && status; i++) /* the others would wait for it */
            if (pids[i]) kill(pids[i], SIGKILL);
        fine &= status == 0;
    }
    crew_unmap(c);
    assert_true(fine);
}

#endif
