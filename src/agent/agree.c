/* What the ranks tell each other before they serve together: whether a step went well, and what they are made of. Hashes are
 * gathered first; only what differs is then named, with both values. */
#include "agent/agent_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void agent_print(const struct error *err)
{
    char line[1100];
    log_error("%s", error_text(err, line, sizeof line));
}

bool agent_together(struct agent *a, int rc, const struct error *err)
{
    u32 size = wire_size(a->wire);
    u8 mine = rc != 0, *all = mem_zero(size, 1);
    struct error trouble;
    bool failed = false;
    if (wire_allgather(a->wire, &mine, 1, all, &trouble)) {
        agent_print(&trouble);
        wire_abort(a->wire, 1);
    }
    for (u32 r = 0; r < size && !failed; r++) {
        if (!all[r]) continue;
        failed = true;
        if (r == agent_rank(a)) agent_print(err);
    }
    free(all);
    return failed;
}

/* different[i]: some rank has another hash than rank 0. */
static int find_different(struct agent *a, const u64 *mine, u32 n, bool *different, struct error *err)
{
    u64 *all = mem_zero((size_t)wire_size(a->wire) * n, sizeof *all);
    int rc = wire_allgather(a->wire, mine, n * sizeof *mine, all, err);
    for (u32 k = 0; k < wire_size(a->wire) * n; k++) different[k % n] |= all[k] != all[k % n];
    free(all);
    return rc;
}

static u64 build_hash(void)
{
    struct buf exe = {0};
    u64 h = hash_bytes(MPISERVE_VERSION, strlen(MPISERVE_VERSION), 1);
    if (file_read("/proc/self/exe", 1u << 30, &exe, NULL) == 0) h = hash_bytes(exe.data, exe.len, h);
    buf_release(&exe);
    return h;
}

static int agree_on_build(struct agent *a, struct error *err)
{
    char text[64];
    snprintf(text, sizeof text, "%s (%016llx)", MPISERVE_VERSION, (unsigned long long)build_hash());
    const struct wire_item item = {"build", text, 0};
    return wire_agree(a->wire, &item, 1, err);
}

static int agree_on_options(struct agent *a, struct error *err)
{
    enum { NAMED = 4 }; /* of those that differ: more help nobody */
    struct config_value *values = NULL;
    u32 n = 0, named = 0;
    for (;; n++) {
        values = mem_resize(values, (n + 1) * sizeof *values);
        if (!config_shared(&a->config, n, &values[n])) break;
    }
    u64 *hashes = mem_zero(n, sizeof *hashes);
    bool *different = mem_zero(n, sizeof *different);
    struct wire_item items[NAMED];
    for (u32 i = 0; i < n; i++) hashes[i] = hash_bytes(values[i].text, strlen(values[i].text), i);
    int rc = find_different(a, hashes, n, different, err);
    for (u32 i = 0; i < n; i++)
        if (different[i] && named < NAMED)
            items[named++] = (struct wire_item){values[i].name, values[i].text, 0};
    if (!rc && named) rc = wire_agree(a->wire, items, named, err);
    free(different);
    free(hashes);
    free(values);
    return rc;
}

int agree_on_start(struct agent *a, struct error *err)
{
    int rc = agree_on_build(a, err);
    return rc ? rc : agree_on_options(a, err);
}

int agree_on_model(struct agent *a, struct error *err)
{
    bool different = false;
    char text[PATH_LEN + 32];
    u64 config = config_fingerprint(&a->config), model = a->needs.fingerprint;
    a->fingerprint = hash_bytes(&config, sizeof config, model);
    int rc = find_different(a, &model, 1, &different, err);
    snprintf(text, sizeof text, "%016llx in %s", (unsigned long long)model, a->config.model);
    const struct wire_item item = {"model", text, 0};
    return rc || !different ? rc : wire_agree(a->wire, &item, 1, err);
}
