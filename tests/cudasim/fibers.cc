#include "fibers.h"
#include "cudasim.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#include <sanitizer/common_interface_defs.h>
#else
#define SANITIZED 0
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

/* ---- a switch between stacks -----------------------------------------------------------------------------------
 * What a call must preserve goes to the old stack; then the stack pointers are exchanged. (swapcontext would do the same, and
 * a system call for the signal mask each time: fifty times slower.) */
extern "C" void cudasim_switch(void **save, void *to);
#if defined(__x86_64__)
asm(R"(
.text
.globl cudasim_switch
.type cudasim_switch, @function
cudasim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cudasim_switch, .-cudasim_switch
.section .note.GNU-stack,"",@progbits
.text
)");
enum { SAVED_WORDS = 7, ENTRY_WORD = 6 };
#elif defined(__aarch64__)
asm(R"(
.text
.globl cudasim_switch
.type cudasim_switch, %function
cudasim_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size cudasim_switch, .-cudasim_switch
.section .note.GNU-stack,"",%progbits
.text
)");
enum { SAVED_WORDS = 20, ENTRY_WORD = 11 };
#else
#error "cudasim switches stacks on x86-64 and aarch64 only"
#endif

namespace cudasim
{
namespace
{
enum { WARP = 32, STACK_BYTES = SANITIZED ? 256 << 10 : 64 << 10 };
/* Stacks begin in different sets of the caches: else those of a warp push each other out. */
enum { STACK_STEP = STACK_BYTES + 9 * 64 };
/* The numbers below n, each once: ascending, or in another order every time. */
class order
{
  public:
    explicit order(unsigned n = 0);
    unsigned next()
    {
        unsigned now = at;
        at = at + step < n ? at + step : at + step - n;
        return now;
    }

  private:
    unsigned n, at = 0, step = 1;
};
enum state { READY, AT_BARRIER, AT_WARP, DONE };

struct fiber {
    void *sp;
    uint3 index;
    enum state state;
    void *fake; /* the sanitizer's, as is what follows */
    const void *stack;
    size_t stack_bytes;
};
struct warp {
    unsigned lanes, arrived, round;
    uint64_t values[2][WARP]; /* of this round and the one before: nobody is two rounds ahead */
};
struct world {
    fiber scheduler, *left; /* left: who ran before */
    std::vector<fiber> fibers;
    std::vector<warp> warps;
    std::unique_ptr<char[]> stacks;
    size_t n_stacks;
    unsigned first, lanes, passed; /* of the warp that runs; passed: who had their turn */
    unsigned ready;                /* who can go on, besides the one that does */
    order turn;
    unsigned current, done, at_barrier, votes, last_votes;
    unsigned char *shared;
    size_t shared_bytes;
    const std::function<void()> *thread;
    uint64_t random;
    void (*deadlock)(const char *);
} w;

uint64_t next_random()
{
    w.random ^= w.random << 13;
    w.random ^= w.random >> 7;
    w.random ^= w.random << 17;
    return w.random;
}

order::order(unsigned n_) : n(n_)
{
    if (n < 2 || !w.random) return;
    at = (unsigned)(next_random() % n);
    do step = 1 + (unsigned)(next_random() % (n - 1));
    while (std::gcd(step, n) != 1);
}

/* Behind a switch, on the new stack. */
void arrive(void *fake)
{
#if SANITIZED
    __sanitizer_finish_switch_fiber(fake, &w.left->stack, &w.left->stack_bytes);
#endif
    (void)fake;
}

/* Returns when somebody switches back. */
void switch_to(fiber &from, fiber &to)
{
#if SANITIZED
    __sanitizer_start_switch_fiber(from.state == DONE ? nullptr : &from.fake, to.stack, to.stack_bytes);
#endif
    w.left = &from;
    cudasim_switch(&from.sp, to.sp);
    arrive(from.fake);
}

/* A thread of the warp that can go on; when all had their turn, in another order. The scheduler: all wait for other warps or have ended. */
fiber &next()
{
    while (w.ready) {
        if (w.passed == w.lanes) {
            w.turn = order(w.lanes);
            w.passed = 0;
        }
        unsigned who = w.first + w.turn.next();
        w.passed++;
        fiber &f = w.fibers[who];
        if (f.state != READY) continue;
        w.ready--;
        w.current = who;
        threadIdx = f.index;
        return f;
    }
    return w.scheduler;
}

/* The thread that runs waits, or has ended. */
void leave(enum state state)
{
    fiber &f = w.fibers[w.current];
    f.state = state;
    switch_to(f, next());
}

void fiber_main()
{
    arrive(nullptr);
    (*w.thread)();
    w.done++;
    leave(DONE);
    abort();
}

void start_block(dim3 block)
{
    unsigned n = block.x * block.y * block.z;
    if (n > w.n_stacks) {
        w.stacks.reset(new char[(size_t)n * STACK_STEP]);
        w.n_stacks = n;
    }
    w.fibers.assign(n, fiber());
    w.warps.assign((n + WARP - 1) / WARP, warp());
    for (unsigned i = 0; i < n; i++) {
        fiber &f = w.fibers[i];
        f.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
        f.stack = w.stacks.get() + (size_t)i * STACK_STEP;
        f.stack_bytes = STACK_BYTES;
        w.warps[i / WARP].lanes++;
        /* the first switch pops zeros and returns into fiber_main, which expects the stack as a call leaves it */
        uintptr_t top = ((uintptr_t)f.stack + STACK_BYTES) & ~(uintptr_t)63;
        void **sp = (void **)top - SAVED_WORDS - 1;
        memset(sp, 0, (SAVED_WORDS + 1) * sizeof *sp);
        sp[ENTRY_WORD] = (void *)fiber_main;
        f.sp = sp;
    }
    w.done = w.at_barrier = w.votes = 0;
    if (w.shared) memset(w.shared, 0xff, w.shared_bytes);
}

[[noreturn]] void deadlock()
{
    char text[256];
    unsigned n = (unsigned)w.fibers.size(), warps = 0;
    for (const warp &x : w.warps) warps += x.arrived;
    snprintf(text, sizeof text,
             "cudasim: block (%u, %u, %u) hangs: of %u threads %u wait at a barrier, %u for their warp, %u "
             "have ended",
             blockIdx.x, blockIdx.y, blockIdx.z, n, w.at_barrier, warps, w.done);
    if (w.deadlock) w.deadlock(text);
    fprintf(stderr, "%s\n", text);
    abort();
}

/* Runs the warp's threads, which all can go on, until each waits for other warps or has ended. They hand on to each other. */
void run_warp(unsigned which)
{
    w.first = which * WARP;
    w.lanes = w.ready = w.passed = w.warps[which].lanes;
    switch_to(w.scheduler, next());
}

/* One warp after the other, each as far as it gets: as unfair as a scheduler may be, so that a warp that does not wait where it
 * should is far ahead of the others. */
void run_block()
{
    unsigned n = (unsigned)w.fibers.size();
    for (;;) {
        order turn((unsigned)w.warps.size());
        for (unsigned i = 0; i < w.warps.size(); i++) run_warp(turn.next());
        if (w.done == n) return;
        if (w.at_barrier < n) deadlock();
        for (fiber &f : w.fibers) f.state = READY;
        w.last_votes = w.votes;
        w.at_barrier = w.votes = 0;
    }
}
} // namespace

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &thread)
{
    std::unique_ptr<unsigned char[]> memory(shared_bytes ? new unsigned char[shared_bytes] : nullptr);
    w.shared = memory.get();
    w.shared_bytes = shared_bytes;
    w.thread = &thread;
    gridDim = grid;
    blockDim = block;
    order turn(grid.x * grid.y * grid.z);
    for (unsigned i = 0; i < grid.x * grid.y * grid.z; i++) {
        unsigned b = turn.next();
        blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
        start_block(block);
        run_block();
    }
    w.shared = nullptr;
}

void *shared(size_t bytes)
{
    if (bytes > w.shared_bytes) {
        fprintf(stderr, "cudasim: a kernel wants %zu bytes of shared memory, its launch gave %zu\n", bytes,
                w.shared_bytes);
        abort();
    }
    return w.shared;
}

const uint64_t *exchange(unsigned mask, uint64_t value, void (*last)(const uint64_t *all))
{
    unsigned self = w.current;
    warp &x = w.warps[self / WARP];
    if (mask != (x.lanes == WARP ? 0xffffffffu : (1u << x.lanes) - 1)) {
        fprintf(stderr, "cudasim: a warp of %u lanes and the mask %08x: only whole warps are emulated\n",
                x.lanes, mask);
        abort();
    }
    const uint64_t *all = x.values[x.round % 2];
    x.values[x.round % 2][self % WARP] = value;
    if (++x.arrived < x.lanes) {
        leave(AT_WARP);
        return all;
    }
    if (last) last(all);
    x.arrived = 0;
    x.round++;
    w.ready = x.lanes - 1;
    for (unsigned i = w.first; i < w.first + x.lanes; i++) w.fibers[i].state = READY;
    return all;
}
} // namespace cudasim

void __syncwarp(unsigned mask)
{
    cudasim::exchange(mask, 0);
}

unsigned __ballot_sync(unsigned mask, int predicate)
{
    const uint64_t *all = cudasim::exchange(mask, predicate != 0);
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1 && all[i]) votes |= 1u << i;
    return votes;
}

int __syncthreads_or(int predicate)
{
    using namespace cudasim;
    w.votes |= predicate != 0;
    w.at_barrier++;
    leave(AT_BARRIER);
    return (int)w.last_votes;
}

void __syncthreads()
{
    __syncthreads_or(0);
}

void cudasim_order(uint64_t seed)
{
    cudasim::w.random = seed * 0x9E3779B97F4A7C15u;
}

void cudasim_on_deadlock(void (*what)(const char *))
{
    cudasim::w.deadlock = what;
}
