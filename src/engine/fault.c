#include "engine/fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const struct {
    const char *name;
    enum fault_kind kind;
} faults[] = {
    {"crash-step", FAULT_CRASH_STEP}, {"stall-step", FAULT_STALL_STEP}, {"crash-token", FAULT_CRASH_TOKEN},
    {"nan-token", FAULT_NAN_TOKEN},   {"slow-step", FAULT_SLOW_STEP},   {"crash-load", FAULT_CRASH_LOAD},
};

int fault_parse(struct fault *f, const char *text, struct error *err)
{
    *f = (struct fault){0};
    if (!text || !*text) return 0;
    for (size_t i = 0; i < COUNT_OF(faults); i++) {
        size_t len = strlen(faults[i].name);
        if (strncmp(text, faults[i].name, len) != 0 || text[len] != ':') continue;
        char *end;
        f->kind = faults[i].kind;
        f->number = strtoull(text + len + 1, &end, 10);
        if (end > text + len + 1 && *end == 0) return 0;
    }
    f->kind = FAULT_NONE;
    return error_set(err, ERR_INPUT, "MPISERVE_FAULT", "\"%s\" is not NAME:NUMBER of a known fault", text);
}

static _Noreturn void crash(const char *when, u64 number)
{
    log_warning("fault: crash at %s %llu", when, (unsigned long long)number);
    abort();
}

void fault_load(const struct fault *f)
{
    if (f->kind == FAULT_CRASH_LOAD) crash("load", f->number);
}

void fault_step(const struct fault *f, const struct step *head)
{
    const struct timespec pause = {.tv_sec = (time_t)(f->number / 1000),
                                   .tv_nsec = (long)(f->number % 1000) * 1000000};
    if (f->kind == FAULT_SLOW_STEP) nanosleep(&pause, NULL);
    if (head->gen != 1 || head->id != f->number) return;
    if (f->kind == FAULT_CRASH_STEP) crash("step", head->id);
    if (f->kind != FAULT_STALL_STEP) return;
    log_warning("fault: stall at step %llu", (unsigned long long)head->id);
    for (;;) sleep(1);
}

bool fault_tokens(const struct fault *f, const i32 *tokens, u32 n)
{
    if (f->kind != FAULT_CRASH_TOKEN && f->kind != FAULT_NAN_TOKEN) return false;
    for (u32 i = 0; i < n; i++) {
        if ((u64)tokens[i] != f->number) continue;
        if (f->kind == FAULT_CRASH_TOKEN) crash("token", f->number);
        return true;
    }
    return false;
}
