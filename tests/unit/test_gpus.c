/* Who gets which GPU: none twice, near ones first, whatever each rank may see; and which are near, from files as the kernel's;
 * and what of one's memory an engine plans. */
#include "folder.h"

#include "agent/gpus.h"
#include "mpiserve/engine.h"

/* "AbC": devices A, b and C, of which A and C are near. */
static struct gpu_view view(const char *letters)
{
    struct gpu_view v = {0};
    for (; *letters; letters++) {
        struct gpu *g = &v.gpu[v.n++];
        g->near = *letters < 'a';
        snprintf(g->uuid, sizeof g->uuid, "GPU-%c", *letters | 32);
    }
    return v;
}

/* seen: a word a rank; dealt: a letter a rank, '-' for none. */
static void check(const char *const seen[], const char *dealt)
{
    struct gpu_view views[8] = {0};
    const struct gpu *out[8];
    u32 n = (u32)strlen(dealt);
    for (u32 i = 0; i < n; i++) views[i] = view(seen[i]);
    gpus_deal(views, n, out);
    for (u32 i = 0; i < n; i++) {
        char got = out[i] ? out[i]->uuid[4] : '-';
        if (got != dealt[i]) fail_msg("rank %u got %c, not %c", i, got, dealt[i]);
    }
}

static void test_deal(void **state)
{
    (void)state;
    check((const char *const[]){"abcd", "abcd", "abcd", "abcd"}, "abcd"); /* nothing is known of nearness */
    check((const char *const[]){"abCD", "abCD", "ABcd", "ABcd"}, "cdab"); /* two domains */
    check((const char *const[]){"ABcd", "ABcd", "ABcd", "abCD"}, "abcd"); /* one more than its domain has */
    check((const char *const[]){"d", "c", "b", "a"}, "dcba");   /* each sees its own (Slurm's tasks) */
    check((const char *const[]){"ab", "", "ab", "ab"}, "a-b-"); /* a rank without an engine; one too many */
    check((const char *const[]){"B", "AB"}, "ba");
}

/* ---- nearness --------------------------------------------------------------------------------------------------*/
static const char *const levels[] = {"bus", "bus/pci", "bus/pci/devices", "bus/pci/devices/0000:3b:00.0",
                                     "bus/pci/devices/0000:af:00.0"};

static int levels_make(void **state)
{
    if (folder_make(state)) return -1;
    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        char path[PATH_LEN];
        snprintf(path, sizeof path, "%s/%s", folder, levels[i]);
        if (mkdir(path, 0700)) return -1;
    }
    return 0;
}

static int levels_drop(void **state)
{
    (void)state;
    for (size_t i = COUNT_OF(levels); i-- > 0;) {
        char path[PATH_LEN];
        snprintf(path, sizeof path, "%s/%s/local_cpulist", folder, levels[i]);
        unlink(path);
        snprintf(path, sizeof path, "%s/%s", folder, levels[i]);
        if (rmdir(path)) return -1;
    }
    return rmdir(folder);
}

static bool near_to(const char *bus, const char *cpus)
{
    struct cpuset set;
    assert_int_equal(cpuset_parse(&set, cpus, NULL), 0);
    return gpus_near(folder, bus, &set);
}

static void test_near(void **state)
{
    (void)state;
    put("bus/pci/devices/0000:3b:00.0/local_cpulist", "0-31,64-95\n", 11);
    put("bus/pci/devices/0000:af:00.0/local_cpulist", "32-63,96-127\n", 13);
    static const struct {
        const char *bus, *cpus;
        bool near;
    } cases[] = {
        {"0000:3b:00.0", "0-3", true},    {"0000:3b:00.0", "95", true},
        {"0000:3b:00.0", "32-63", false}, {"0000:3b:00.0", "31-32", true}, /* some are enough */
        {"0000:3B:00.0", "0", true},      {"0000:AF:00.0", "40", true}, /* the kernel writes small letters */
        {"0000:af:00.0", "0-31", false},  {"0000:af:00.0", "127", true},
        {"0000:00:00.0", "0-127", false}, {"", "0-127", false}, /* of these it says nothing */
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        if (near_to(cases[i].bus, cases[i].cpus) != cases[i].near)
            fail_msg("%s: %s", cases[i].bus, cases[i].cpus);
    put("bus/pci/devices/0000:3b:00.0/local_cpulist", "\n", 1); /* a bus of no domain, on some machines */
    assert_false(near_to("0000:3b:00.0", "0-127"));
}

/* ---- memory ----------------------------------------------------------------------------------------------------*/
/* Weights and work take 300 of 1000. */
static void test_room(void **state)
{
    static const struct {
        u64 free;
        double share;
        u64 asked;
        int rc;
        u64 room;
    } cases[] = {
        {1000, 0.9, 0, 0, 600}, /* nobody else is there */
        {950, 0.9, 0, 0, 550},  /* CUDA's own */
        {500, 0.9, 0, 0, 100},  /* others have half: 100 stay free all the same */
        {401, 0.9, 0, 0, 1},           {400, 0.9, 0, ERR_MEMORY, 0}, {100, 0.9, 0, ERR_MEMORY, 0},
        {99, 0.9, 0, ERR_MEMORY, 0}, /* less than what is to stay free */
        {0, 0.9, 0, ERR_MEMORY, 0},    {500, 1.0, 0, 0, 200},        {900, 0.5, 0, 0, 100},
        {500, 0.5, 0, ERR_MEMORY, 0},  {500, 0.9, 100, 0, 100},      {500, 0.9, 40, 0, 40},
        {500, 0.9, 101, ERR_INPUT, 0}, {400, 0.9, 1, ERR_MEMORY, 0},
    };
    const struct engine_needs needs = {.device = true, .weights_bytes = 200, .work_bytes = 100};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const struct engine_device d = {1000, cases[i].free, cases[i].share, cases[i].asked};
        struct error err;
        u64 room;
        assert_int_equal(engine_device_room(&needs, &d, &room, &err), cases[i].rc);
        if (!cases[i].rc) assert_int_equal(room, cases[i].room);
        if (cases[i].rc == ERR_INPUT)
            assert_string_equal(err.message, "101 are more than the GPU has left: 100");
        if (cases[i].free == 99)
            assert_string_equal(err.message,
                                "0.90 of the GPU's 1000 bytes leaves 100 unplanned, and 99 are free: weights "
                                "(200) and work (100) do not fit into 0. Raise it, take a GPU that others "
                                "use less, or several (-tp)");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_deal), cmocka_unit_test(test_room),
                                       cmocka_unit_test_setup_teardown(test_near, levels_make, levels_drop)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("gpus", tests, NULL, NULL);
}
