/* config/: every row of the option table by itself, then precedence, names, rules, fingerprint and help. */
#include "config/options.h"
#include "mpiserve/route.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define MODEL "/models/tiny"

/* Loads `mpiserve MODEL arguments...`; the arguments end with NULL. */
static int load(struct config *c, struct error *err, ...)
{
    char *argv[32] = {(char *)"mpiserve", (char *)MODEL};
    int argc = 2;
    va_list args;
    va_start(args, err);
    for (char *a; (a = va_arg(args, char *));) argv[argc++] = a;
    va_end(args);
    return config_load(c, argc, argv, 1, err);
}

static bool is_number(const struct option *o)
{
    return o->kind == OPTION_INT || o->kind == OPTION_SIZE || o->kind == OPTION_SECONDS;
}

static int set(struct config *c, const struct option *o, const char *text)
{
    struct error err;
    return value_set(c, o, text, FROM_COMMAND_LINE, "test", &err);
}

static double number_of(const struct config *c, const struct option *o)
{
    const char *field = (const char *)c + o->at;
    return o->kind == OPTION_SECONDS ? *(const double *)field : (double)*(const i64 *)field;
}

/* A number of the row's unit that lies `by` beyond v (seconds rows count in milliseconds). */
static const char *text_of(const struct option *o, i64 v, i64 by, char *out, size_t size)
{
    if (o->kind == OPTION_SECONDS)
        snprintf(out, size, "%.3f", (double)(v + by) / 1000);
    else
        snprintf(out, size, "%lld", (long long)(v + by));
    return out;
}

static void every_row_is_well_formed(void **state)
{
    (void)state;
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        assert_non_null(o->standard);
        assert_true(o->standard[0] || o->sample || o->flags & OPTION_NO_FILE); /* jobs/every-option.yaml */
        assert_true(strlen(o->name) < 64 && strlen(o->help) > 12);
        assert_int_equal(o->help[strlen(o->help) - 1], '.');
        assert_false(is_number(o) && (o->high <= o->low || o->words));
        assert_int_equal(o->kind == OPTION_CHOICE || o->kind == OPTION_SWITCH || o->kind == OPTION_FLAG,
                         o->words != NULL);
        for (size_t k = 0; k < i; k++) assert_string_not_equal(o->name, option_table[k].name);
        for (size_t k = 0; k < foreign_count; k++) assert_string_not_equal(o->name, foreign_table[k].name);
    }
}

static void range_ends_of_every_row(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    char text[64];
    assert_int_equal(load(&c, &err, NULL), 0);
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        if (!is_number(o)) continue;
        double unit = o->kind == OPTION_SECONDS ? 1000 : 1;
        assert_int_equal(set(&c, o, text_of(o, o->low, 0, text, sizeof(text))), 0);
        assert_true(number_of(&c, o) == (double)o->low / unit);
        assert_int_equal(set(&c, o, text_of(o, o->high, 0, text, sizeof(text))), 0);
        assert_true(number_of(&c, o) == (double)o->high / unit);
        assert_int_equal(set(&c, o, text_of(o, o->low, -1, text, sizeof(text))), ERR_INPUT);
        if (o->high < INT64_MAX)
            assert_int_equal(set(&c, o, text_of(o, o->high, 1, text, sizeof(text))), ERR_INPUT);
        assert_int_equal(set(&c, o, "9223372036854775808"), ERR_INPUT);
        assert_true(number_of(&c, o) == (double)o->high / unit); /* a refused value changes nothing */
        if (!o->word) continue;
        assert_int_equal(set(&c, o, o->word), 0);
        assert_true(number_of(&c, o) == (double)o->word_is);
    }
}

static void every_row_refuses_nonsense(void **state)
{
    (void)state;
    static const char *const nonsense[] = {
        "",    " ",   "-",   "x",    "1x", "1 ",  " 1",  "0x10", "1e3",
        "nan", "inf", "--1", "1..2", ".",  "1kk", "1kB", "\x01", "99999999999999999999999999999999"};
    struct config c;
    struct error err;
    assert_int_equal(load(&c, &err, NULL), 0);
    for (size_t i = 0; i < option_count; i++)
        for (size_t k = 0; k < COUNT_OF(nonsense); k++) {
            const struct option *o = &option_table[i];
            if (o->kind == OPTION_TEXT || o->kind == OPTION_NAMES) continue;
            assert_int_equal(set(&c, o, nonsense[k]), ERR_INPUT);
        }
}

static void every_word_of_every_choice(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    char words[128], *next;
    assert_int_equal(load(&c, &err, NULL), 0);
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        if (!o->words) continue;
        snprintf(words, sizeof(words), "%s", o->words);
        for (char *w = strtok_r(words, " ", &next); w; w = strtok_r(NULL, " ", &next)) {
            assert_int_equal(set(&c, o, w), 0);
            if (o->kind == OPTION_CHOICE) assert_string_equal((char *)&c + o->at, w);
        }
        assert_int_equal(set(&c, o, o->words), ERR_INPUT);
    }
}

static void defaults(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    assert_int_equal(load(&c, &err, NULL), 0);
    assert_string_equal(c.model, MODEL);
    assert_int_equal(c.n_served_model_names, 1);
    assert_string_equal(c.served_model_name[0], "tiny");
    assert_string_equal(c.host, "127.0.0.1");
    assert_int_equal(c.port, 8000);
    assert_int_equal(c.seed, ABSENT);
    assert_int_equal(c.data_parallel_size, ABSENT);
    assert_int_equal(c.data_parallel_size_local, ABSENT);
    assert_int_equal(c.max_num_seqs, 64);
    assert_int_equal(c.max_ongoing_requests, 64);
    assert_int_equal(c.max_request_bytes, 32 << 20);
    assert_true(c.generation_config && !c.api_key_none);
    assert_true(c.graceful_shutdown_timeout_s == 20);
    assert_int_equal(c.ranks, 0); /* auto */
}

static void command_line_beats_environment_beats_default(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    setenv("MPISERVE_PORT", "9001", 1);
    setenv("MPISERVE_SERVED_MODEL_NAME", "a,b c", 1);
    setenv("MPISERVE_HOST", "", 1); /* empty: not set */
    assert_int_equal(load(&c, &err, NULL), 0);
    assert_int_equal(c.port, 9001);
    assert_int_equal(c.n_served_model_names, 3);
    assert_string_equal(c.served_model_name[2], "c");
    assert_string_equal(c.host, "127.0.0.1");
    assert_int_equal(load(&c, &err, "--port", "0", "--served-model-name", "x", "y", "--port=7", NULL), 0);
    assert_int_equal(c.port, 7);
    assert_int_equal(c.n_served_model_names, 2);
    unsetenv("MPISERVE_PORT");
    unsetenv("MPISERVE_SERVED_MODEL_NAME");
    unsetenv("MPISERVE_HOST");
}

static void spellings(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    assert_int_equal(load(&c, &err, "--max_num_seqs=5", "-dp", "3", "-dpl=0", "--max-model-len", "1k", NULL),
                     0);
    assert_int_equal(c.max_num_seqs, 5);
    assert_int_equal(c.data_parallel_size, 3);
    assert_int_equal(c.data_parallel_size_local, 0);
    assert_int_equal(c.max_model_len, 1000);
    assert_int_equal(load(&c, &err, "--max-model-len=1K", "--kv-cache-memory-bytes", "2G", NULL), 0);
    assert_int_equal(c.max_model_len, 1024);
    assert_int_equal(c.kv_cache_memory_bytes, 2ll << 30);
    assert_int_equal(load(&c, &err, "--shutdown-timeout", "1.5", "-np", "3", "--Port", "1", NULL), 0);
    assert_true(c.graceful_shutdown_timeout_s == 1.5);
    assert_int_equal(c.ranks, 3);
}

struct bad {
    const char *arguments[4];
    int code;
    const char *where, *says; /* in the error */
};
static const struct bad bad_lines[] = {
    {{"--prot", "1"}, ERR_INPUT, "--prot", "did you mean --port"},
    {{"--max-num-seq=4"}, ERR_INPUT, "--max-num-seq", "did you mean --max-num-seqs"},
    {{"--tensor_paralel_size", "1"},
     ERR_INPUT,
     "--tensor_paralel_size",
     "did you mean --tensor-parallel-size"},
    {{"--graceful"}, ERR_INPUT, "--graceful", "did you mean --graceful-shutdown-timeout"},
    {{"--xyzzy"}, ERR_INPUT, "--xyzzy", "no such option; see --help"},
    {{"-port", "1"}, ERR_INPUT, "-port", "did you mean --port"},
    {{"-"}, ERR_INPUT, "-", "no such option"},
    {{"--"}, ERR_INPUT, "--", "no such option"},
    {{"--port"}, ERR_INPUT, "--port", "needs a value"},
    {{"--nodes", "4"}, ERR_INPUT, "--nodes", "only for `mpiserve plan`"},
    {{"--json"}, ERR_INPUT, "--json", "only for `mpiserve plan`"},
    {{"--placement-group-strategy", "pack"}, ERR_INPUT, "--placement-group-strategy", "PACK|STRICT_PACK"},
    {{"--router", "nearest"},
     ERR_INPUT,
     "--router",
     "`nearest` is not in the range power_of_two|least_loaded|round_robin|session|prefix_aware|random"},
    {{"--port", "--host"}, ERR_INPUT, "--port", "needs a value"},
    {{"--port="}, ERR_INPUT, "--port", "0..65535"},
    {{"--port", "65536"}, ERR_INPUT, "--port", "`65536` is not in the range 0..65535"},
    {{"--block-size", "24"}, ERR_INPUT, "--block-size", "powers of two"},
    {{"--compute", "fp8"}, ERR_INPUT, "--compute", "auto|f32|bf16"},
    {{"another"}, ERR_INPUT, "another", "the model is " MODEL},
    {{"--served-model-name", "--port", "1"}, ERR_INPUT, "--served-model-name", "needs a value"},
    {{"--served-model-name", "a", "a"}, ERR_INPUT, "--served-model-name", "twice"},
    {{"-tp", "0"}, ERR_INPUT, "-tp", "1..4096"},
    {{"-pp", "5000"}, ERR_INPUT, "-pp", "1..4096"},
    {{"--max-num-seqs", "600"}, ERR_INPUT, "--max-num-batched-tokens", "512 is less than --max-num-seqs 600"},
    {{"--api-key", "none", "--host", "0.0.0.0"}, ERR_INPUT, "--api-key", "0.0.0.0"},
    {{"--ssl-keyfile", "f"}, ERR_UNSUPPORTED, "--ssl-keyfile", "no TLS"},
    {{"-dpn", "1"}, ERR_UNSUPPORTED, "-dpn", "mpirun says"},
    {{"--enforce-eager=1"}, ERR_INPUT, "--enforce-eager", "takes no value"},
    {{"--no-enable-admin=1"}, ERR_INPUT, "--no-enable-admin", "takes no value"},
    {{"--no-port"}, ERR_INPUT, "--no-port", "no such option"},
};

static void bad_command_lines(void **state)
{
    (void)state;
    struct config c;
    for (size_t i = 0; i < COUNT_OF(bad_lines); i++) {
        const struct bad *b = &bad_lines[i];
        struct error err = {0};
        assert_int_equal(
            load(&c, &err, b->arguments[0], b->arguments[1], b->arguments[2], b->arguments[3], NULL),
            b->code);
        assert_string_equal(err.where, b->where);
        assert_non_null(strstr(err.message, b->says));
    }
}

/* The policies that there are, and no others; and Ray's names. */
static void routers(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    char names[128] = "";
    for (u32 i = 0; route_policy_at(i); i++) {
        const char *name = route_policy_name(route_policy_at(i));
        assert_int_equal(load(&c, &err, "--router", name, NULL), 0);
        assert_string_equal(c.router, name);
        snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s", i ? " " : "", name);
    }
    assert_string_equal(option_find("router")->words, names);
    assert_int_equal(load(&c, &err, NULL), 0);
    assert_string_equal(c.router, "power_of_two");
    assert_int_equal(load(&c, &err, "--request-router-class", "PowerOfTwoChoicesRequestRouter", NULL), 0);
    assert_string_equal(c.router, "power_of_two");
}

/* --no-NAME turns a flag off; the last word counts. */
static void flags_go_on_and_off(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    const struct {
        const char *words[2];
        bool on;
    } cases[] = {{{NULL}, true},
                 {{"--no-enable-prefix-caching"}, false},
                 {{"--no_enable_prefix_caching"}, false},
                 {{"--enable-prefix-caching=false"}, false},
                 {{"--enable-prefix-caching"}, true},
                 {{"--no-enable-prefix-caching", "--enable-prefix-caching"}, true},
                 {{"--enable-prefix-caching", "--no-enable-prefix-caching"}, false}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        assert_int_equal(load(&c, &err, cases[i].words[0], cases[i].words[1], NULL), 0);
        assert_int_equal(c.enable_prefix_caching, cases[i].on);
        assert_int_equal(c.n_notes, 0);
    }
    setenv("MPISERVE_ENABLE_PREFIX_CACHING", "false", 1);
    assert_int_equal(load(&c, &err, NULL), 0);
    assert_false(c.enable_prefix_caching);
    unsetenv("MPISERVE_ENABLE_PREFIX_CACHING");
}

static void bad_environment(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    setenv("MPISERVE_PROT", "1", 1);
    assert_int_equal(load(&c, &err, NULL), ERR_INPUT);
    assert_string_equal(err.where, "MPISERVE_PROT");
    assert_non_null(strstr(err.message, "nearest: port"));
    unsetenv("MPISERVE_PROT");
    setenv("MPISERVE_PORT", "abc", 1);
    assert_int_equal(load(&c, &err, "--port", "1", NULL), ERR_INPUT);
    assert_string_equal(err.where, "MPISERVE_PORT");
    unsetenv("MPISERVE_PORT");
    setenv("MPISERVE_HOME", "/anything", 1);
    assert_int_equal(load(&c, &err, NULL), 0);
    unsetenv("MPISERVE_HOME");
}

static void keys(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    char key[CONFIG_KEY_MAX + 1];
    assert_int_equal(load(&c, &err, "--api-key", "sk-1234567890", NULL), ERR_INPUT);
    assert_non_null(strstr(err.message, "--api-key-file"));
    assert_non_null(strstr(err.message, "MPISERVE_API_KEY"));
    assert_null(strstr(err.message, "sk-1234567890"));
    assert_int_equal(load(&c, &err, "--api-key", "none", NULL), 0);
    assert_true(c.api_key_none);
    assert_int_equal(config_key(&c, key, sizeof(key), &err), 0);
    assert_int_equal(load(&c, &err, NULL), 0);
    assert_int_equal(config_key(&c, key, sizeof(key), &err), 0);

    setenv("MPISERVE_API_KEY", "sk-1234567890", 1);
    assert_int_equal(load(&c, &err, NULL), 0);
    assert_int_equal(config_key(&c, key, sizeof(key), &err), 1);
    assert_string_equal(key, "sk-1234567890");
    assert_int_equal(load(&c, &err, "--api-key", "none", NULL), 0); /* the command line wins */
    assert_int_equal(config_key(&c, key, sizeof(key), &err), 0);
    setenv("MPISERVE_API_KEY", "with blank", 1);
    assert_int_equal(load(&c, &err, NULL), ERR_INPUT);
    assert_null(strstr(err.message, "blank "));
    unsetenv("MPISERVE_API_KEY");
}

static void key_files(void **state)
{
    (void)state;
    static const struct {
        const char *text, *key; /* NULL: refused */
    } files[] = {
        {"sk-12345678\n", "sk-12345678"},
        {"Authorization: Bearer sk-12345678\r\n", "sk-12345678"},
        {"sk-12345678", "sk-12345678"},
        {"", NULL},
        {"short\n", NULL},
        {"has a blank\n", NULL},
    };
    struct config c;
    struct error err;
    char path[64], key[CONFIG_KEY_MAX + 1];
    snprintf(path, sizeof(path), "/tmp/test_config-%d", getpid());
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        assert_int_equal(file_write_whole(path, files[i].text, strlen(files[i].text), 0600, &err), 0);
        assert_int_equal(load(&c, &err, "--api-key-file", path, NULL), 0);
        assert_int_equal(config_key(&c, key, sizeof(key), &err), files[i].key ? 1 : ERR_INPUT);
        if (files[i].key) assert_string_equal(key, files[i].key);
    }
    unlink(path);
    assert_int_equal(config_key(&c, key, sizeof(key), &err), ERR_NOT_FOUND);
    assert_string_equal(err.where, path);
}

static void foreign_options_leave_a_note(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    assert_int_equal(load(&c, &err, "--enforce-eager", "--distributed-executor-backend", "mp", "-O3", NULL),
                     0);
    assert_int_equal(c.n_notes, 3);
    assert_non_null(strstr(c.notes[0], "--enforce-eager is ignored: "));
    assert_non_null(strstr(c.notes[1], "always MPI"));
}

static void what_up_passes_on(void **state)
{
    (void)state;
    char *argv[] = {(char *)"mpiserve",
                    (char *)"up",
                    (char *)"-n",
                    (char *)"4",
                    (char *)"model",
                    (char *)"--port=1",
                    (char *)"--served-model-name",
                    (char *)"a",
                    (char *)"b",
                    (char *)"--ranks=3",
                    (char *)"--compute",
                    (char *)"f32"};
    static const char *const wanted[] = {"model",     "--port=1", "--served-model-name", "a", "b",
                                         "--compute", "f32"};
    const char *out[COUNT_OF(argv)];
    int n = config_passed(COUNT_OF(argv), argv, 2, out, COUNT_OF(out));
    assert_int_equal(n, COUNT_OF(wanted));
    for (int i = 0; i < n; i++) assert_string_equal(out[i], wanted[i]);
    assert_int_equal(config_passed(COUNT_OF(argv), argv, 2, out, 2), 2);
}

static void fingerprint(void **state)
{
    (void)state;
    struct config a, b;
    struct error err;
    assert_int_equal(load(&a, &err, NULL), 0);
    assert_int_equal(load(&b, &err, "--run-dir", "/x", "--log-level", "debug", "-n", "2", NULL), 0);
    assert_true(config_fingerprint(&a) == config_fingerprint(&b));
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        if (!is_number(o) || o->flags & OPTION_LOCAL) continue;
        char text[64];
        b = a;
        assert_int_equal(set(&b, o, text_of(o, o->low, 0, text, sizeof(text))), 0);
        if (number_of(&a, o) == number_of(&b, o))
            assert_int_equal(set(&b, o, text_of(o, o->high, 0, text, sizeof(text))), 0);
        assert_true(config_fingerprint(&a) != config_fingerprint(&b));
    }
    /* a model may lie elsewhere on another host; it is compared by its own fingerprint */
    assert_int_equal(load(&b, &err, "--model", "/elsewhere/model", "--served-model-name", "other", NULL), 0);
    assert_true(config_fingerprint(&a) == config_fingerprint(&b));
}

static void shared_options_are_named(void **state)
{
    (void)state;
    struct config a, b;
    struct config_value x, y;
    struct error err;
    u32 n = 0, differ = 0;
    assert_int_equal(load(&a, &err, NULL), 0);
    assert_int_equal(load(&b, &err, "--seed", "5", "--queue-timeout", "1.5", "--generation-config", "vllm",
                          "--kv-cache-memory-bytes", "1M", "--host", "::1", NULL),
                     0);
    for (; config_shared(&a, n, &x); n++) {
        assert_true(config_shared(&b, n, &y));
        assert_string_equal(x.name, y.name);
        assert_true(strcmp(x.name, "--model") && strcmp(x.name, "--api-key") && strcmp(x.name, "--run-dir"));
        if (strcmp(x.text, y.text) == 0) continue;
        static const char *const wanted[] = {"--generation-config auto vllm", "--seed random 5",
                                             "--kv-cache-memory-bytes auto 1048576", "--queue-timeout 60 1.5",
                                             "--host 127.0.0.1 ::1"};
        char got[512];
        snprintf(got, sizeof(got), "%s %.100s %.100s", x.name, x.text, y.text);
        assert_true(differ < COUNT_OF(wanted));
        assert_string_equal(got, wanted[differ++]);
    }
    assert_int_equal(differ, 5);
    assert_false(config_shared(&b, n, &y));
}

static void help_shows_every_row(void **state)
{
    (void)state;
    char path[64], name[96];
    snprintf(path, sizeof(path), "/tmp/test_config-help-%d", getpid());
    fflush(stdout);
    int kept = dup(1);
    assert_non_null(freopen(path, "w", stdout));
    config_help("mpiserve");
    fflush(stdout);
    dup2(kept, 1);
    close(kept);
    struct buf text = {0};
    struct error err;
    assert_int_equal(file_read(path, 1 << 20, &text, &err), 0);
    unlink(path);
    for (size_t i = 0; i < option_count; i++) {
        char option[96];
        snprintf(option, sizeof(option), "\n  --%s", option_table[i].name);
        assert_non_null(strstr(text.data, option));
        snprintf(option, sizeof(option), "%s]\n", name_of_environment(&option_table[i], name, sizeof(name)));
        assert_int_equal(strstr(text.data, option) != NULL, !(option_table[i].flags & OPTION_PLAN));
    }
    for (size_t i = 0; i < foreign_count; i++) {
        snprintf(name, sizeof(name), "\n  --%s ", foreign_table[i].name);
        assert_null(strstr(text.data, name));
    }
    for (char *line = text.data; *line; line += strcspn(line, "\n") + 1)
        assert_true(strcspn(line, "\n") <= 100);
    buf_release(&text);
}

static void adapters_are_named(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    setenv("MPISERVE_LORA_MODULES", "e=/e f=/f", 1);
    assert_int_equal(load(&c, &err, NULL), 0);
    assert_int_equal(c.n_lora_modules, 2);
    assert_string_equal(c.lora_modules[1].name, "f");
    assert_string_equal(c.lora_modules[1].path, "/f");
    assert_int_equal(load(&c, &err, "--lora-modules", "a=x/y=z", "b=/b", "--lora-modules=c=/c",
                          "--lora-modules", "{\"name\": \"d\", \"path\": \"/d e\"}", NULL),
                     0);
    unsetenv("MPISERVE_LORA_MODULES");
    static const char *const wanted[][2] = {{"a", "x/y=z"}, {"b", "/b"}, {"c", "/c"}, {"d", "/d e"}};
    assert_int_equal(c.n_lora_modules, COUNT_OF(wanted));
    for (size_t i = 0; i < COUNT_OF(wanted); i++) {
        assert_string_equal(c.lora_modules[i].name, wanted[i][0]);
        assert_string_equal(c.lora_modules[i].path, wanted[i][1]);
    }
    static const char *const wrong[][2] = {{"--lora-modules=x", "has no name: write NAME=FOLDER"},
                                           {"--lora-modules==/x", "both not empty"},
                                           {"--lora-modules=x=", "both not empty"},
                                           {"--lora-modules={\"name\": \"x\"}", "needs {\"name\": NAME"},
                                           {"--lora-modules={", "is not valid JSON"},
                                           {"--lora-modules=tiny=/x", "is the name of the model itself"}};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        assert_int_equal(load(&c, &err, wrong[i][0], NULL), ERR_INPUT);
        assert_string_equal(err.where, "--lora-modules");
        assert_non_null(strstr(err.message, wrong[i][1]));
    }
    assert_int_equal(load(&c, &err, "--lora-modules", "a=/a", "a=/b", NULL), ERR_INPUT);
    assert_non_null(strstr(err.message, "named twice"));
}

static void served_name_of_folder(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"a/b/c", "c"}, {"a/b/c//", "c"}, {"c", "c"}, {"/c", "c"}, {"/", "model"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct config c;
        struct error err;
        char *argv[] = {(char *)"mpiserve", (char *)cases[i][0]};
        assert_int_equal(config_load(&c, 2, argv, 1, &err), 0);
        assert_string_equal(c.served_model_name[0], cases[i][1]);
    }
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_is_well_formed),
        cmocka_unit_test(range_ends_of_every_row),
        cmocka_unit_test(every_row_refuses_nonsense),
        cmocka_unit_test(adapters_are_named),
        cmocka_unit_test(every_word_of_every_choice),
        cmocka_unit_test(defaults),
        cmocka_unit_test(command_line_beats_environment_beats_default),
        cmocka_unit_test(spellings),
        cmocka_unit_test(bad_command_lines),
        cmocka_unit_test(flags_go_on_and_off),
        cmocka_unit_test(bad_environment),
        cmocka_unit_test(keys),
        cmocka_unit_test(key_files),
        cmocka_unit_test(foreign_options_leave_a_note),
        cmocka_unit_test(what_up_passes_on),
        cmocka_unit_test(fingerprint),
        cmocka_unit_test(shared_options_are_named),
        cmocka_unit_test(help_shows_every_row),
        cmocka_unit_test(routers),
        cmocka_unit_test(served_name_of_folder),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
