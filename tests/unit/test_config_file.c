/* config/: job files. Values and where they come from, a table of bad files with their exact errors, damaged files. */
#include "config/options.h"
#include "config/yaml.h"
#include "folder.h"

#define MODEL "/models/tiny"

static char path[128];

static int write_job(const char *text, size_t len, struct error *err)
{
    snprintf(path, sizeof(path), "%s/job.yaml", folder);
    return file_write_whole(path, text, len, 0600, err);
}

/* Loads `mpiserve job.yaml more...`; the arguments end with NULL. */
static int load(struct config *c, struct error *err, const char *text, ...)
{
    char *argv[16] = {(char *)"mpiserve", path};
    int argc = 2;
    va_list args;
    assert_int_equal(write_job(text, strlen(text), err), 0);
    va_start(args, text);
    for (char *a; (a = va_arg(args, char *));) argv[argc++] = a;
    va_end(args);
    *err = (struct error){0};
    return config_load(c, argc, argv, 1, err);
}

static const char *in_folder(const char *name)
{
    static char out[128];
    snprintf(out, sizeof(out), "%s/%s", folder, name);
    return out;
}

/* ---- good files ---------------------------------------------------------------------------------------------------*/
static void every_option_has_its_place(void **state)
{
    (void)state;
    static const char text[] = "# a comment\n"
                               "model: models/tiny\n"
                               "served-model-name: [a, \"b c\"]\n"
                               "dtype: float32\n"
                               "max_model_len: 1K\n"
                               "seed: 7\n"
                               "generation_config: vllm\n"
                               "num_replicas: auto\n"
                               "data_parallel_size_local: 0\n"
                               "max-num-seqs: 8\n"
                               "kv_cache_memory_bytes: \"2G\"\n"
                               "max_queued_requests: 0\n"
                               "request_timeout_s: 1.5\n"
                               "port: 0\n"
                               "api_key_file: secrets/key\n"
                               "log_level: debug\n"
                               "ranks: 3\n"
                               "mpirun: mpirun\n"
                               "run_dir: /tmp/x\n"
                               "host: ~\n"
                               "engine: null\n" /* the word, not nothing */
                               "threads: null\n";
    struct config c;
    struct error err;
    assert_int_equal(load(&c, &err, text, NULL), 0);
    assert_string_equal(c.model, in_folder("models/tiny"));
    assert_int_equal(c.n_served_model_names, 2);
    assert_string_equal(c.served_model_name[1], "b c");
    assert_string_equal(c.compute, "f32");
    assert_string_equal(c.engine, "null");
    assert_int_equal(c.max_model_len, 1024);
    assert_int_equal(c.seed, 7);
    assert_false(c.generation_config);
    assert_int_equal(c.data_parallel_size, ABSENT);
    assert_int_equal(c.data_parallel_size_local, 0);
    assert_int_equal(c.max_num_seqs, 8);
    assert_int_equal(c.kv_cache_memory_bytes, 2ll << 30);
    assert_int_equal(c.max_queued_requests, 0);
    assert_true(c.request_timeout_s == 1.5);
    assert_int_equal(c.port, 0);
    assert_string_equal(c.api_key_file, in_folder("secrets/key"));
    assert_string_equal(c.log_level, "debug");
    assert_int_equal(c.ranks, 3);
    assert_string_equal(c.mpirun, "mpirun");
    assert_string_equal(c.run_dir, "/tmp/x");
    assert_string_equal(c.host, "127.0.0.1");
    assert_int_equal(c.threads, 0);
    assert_string_equal(c.config_file, path);
}

static void the_maps_of_ray_serve(void **state)
{
    (void)state;
    struct config c, flat;
    struct error err;
    assert_int_equal(
        load(&c, &err,
             "http_options: {host: localhost, port: 81, keep_alive_timeout_s: 9, request_timeout_s: 5}\n"
             "deployments:\n"
             "  - name: demo\n"
             "    model: m\n"
             "    num_replicas: 2\n"
             "    max_ongoing_requests: 5\n"
             "    max_queued_requests: 6\n"
             "    graceful_shutdown_timeout_s: 7\n"
             "    health_check_period_s: 10\n"
             "    max_constructor_retry_count: 20\n",
             NULL),
        0);
    assert_string_equal(c.host, "localhost");
    assert_string_equal(c.served_model_name[0], "demo");
    assert_string_equal(c.model, in_folder("m"));
    assert_int_equal(c.data_parallel_size, 2);
    assert_int_equal(c.max_ongoing_requests, 5);
    assert_true(c.keep_alive_timeout_s == 9 && c.request_timeout_s == 5 &&
                c.graceful_shutdown_timeout_s == 7);
    assert_int_equal(c.n_notes, 2);
    assert_int_equal(
        load(&flat, &err,
             "host: localhost\nport: 81\nkeep-alive-timeout: 9\nrequest-timeout: 5\n"
             "served_model_name: demo\nmodel: m\ndata_parallel_size: 2\nmax_ongoing_requests: 5\n"
             "max_num_queued_reqs: 6\nshutdown_timeout: 7\n",
             NULL),
        0);
    assert_true(config_fingerprint(&c) == config_fingerprint(&flat));
}

static void service_levels(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    static const char *const texts[] = {
        "deployments:\n  - name: a\n    slo: {ttft_ms: 500, itl_ms: 40}\n    admission: slo\n",
        "slo:\n  ttft-ms: 500\n  itl-ms: 40\nadmission: slo\n",
        "slo_ttft_ms: 500\nslo-itl-ms: 40\nadmission: slo\n",
        "deployments: [{slo_ttft_ms: 500, slo: {itl_ms: 40}, admission: slo}]\n"};
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        assert_int_equal(load(&c, &err, texts[i], MODEL, NULL), 0);
        assert_int_equal(c.slo_ttft_ms, 500);
        assert_int_equal(c.slo_itl_ms, 40);
        assert_string_equal(c.admission, "slo");
    }
    assert_int_equal(load(&c, &err, "slo: ~\n", MODEL, NULL), 0);
    assert_true(c.slo_ttft_ms == 0 && c.slo_itl_ms == 0 && strcmp(c.admission, "none") == 0);
    assert_int_equal(load(&c, &err, "slo: {itl_ms: 5, ttft_ms: none}\n", MODEL, NULL), 0);
    assert_true(c.slo_ttft_ms == 0 && c.slo_itl_ms == 5);
}

static void nothing_in_a_file_is_fine(void **state)
{
    (void)state;
    static const char *const texts[] = {"",
                                        "\n",
                                        "# port: 1\n",
                                        "---\n",
                                        "---\n...\n",
                                        "~\n",
                                        "{}\n",
                                        "%YAML 1.2\n---\n",
                                        "\xef\xbb\xbf# a mark\n",
                                        "http_options: {}\n",
                                        "http_options: ~\ndeployments: null\n"};
    struct config c;
    struct error err;
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        assert_int_equal(load(&c, &err, texts[i], MODEL, NULL), 0);
        assert_int_equal(c.port, 8000);
    }
}

static void precedence(void **state)
{
    (void)state;
    static const char text[] =
        "port: 1\nmax_num_seqs: 11\nserved_model_name: [a, b]\nhost: 127.0.0.9\nmodel: m\n";
    struct config c;
    struct error err;
    setenv("MPISERVE_PORT", "2", 1);
    setenv("MPISERVE_MAX_NUM_SEQS", "12", 1);
    setenv("MPISERVE_HOST", "", 1); /* empty: not set */
    assert_int_equal(load(&c, &err, text, "/models/n", "--port", "3", "--served-model-name", "x", NULL), 0);
    assert_int_equal(c.port, 3);
    assert_int_equal(c.max_num_seqs, 12);
    assert_int_equal(c.max_num_batched_tokens, 512);
    assert_int_equal(c.n_served_model_names, 1);
    assert_string_equal(c.host, "127.0.0.9");
    assert_string_equal(c.model, "/models/n");
    char where[256], wanted[256];
    assert_string_equal(config_where(&c, "port", where, sizeof(where)), "--port");
    assert_string_equal(config_where(&c, "max-num-seqs", where, sizeof(where)), "MPISERVE_MAX_NUM_SEQS");
    assert_string_equal(config_where(&c, "block-size", where, sizeof(where)), "--block-size");
    snprintf(wanted, sizeof(wanted), "%s:4:7: host", path);
    assert_string_equal(config_where(&c, "host", where, sizeof(where)), wanted);
    unsetenv("MPISERVE_PORT");
    unsetenv("MPISERVE_MAX_NUM_SEQS");
    unsetenv("MPISERVE_HOST");
}

static void rules_between_options_name_both_places(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    char text[1100], wanted[400];
    setenv("MPISERVE_MAX_NUM_SEQS", "100", 1);
    assert_int_equal(load(&c, &err, "\nmax_num_batched_tokens: 64\n", NULL), ERR_INPUT);
    snprintf(wanted, sizeof(wanted),
             "%s:2:25: max_num_batched_tokens: 64 is less than --max-num-seqs 100 (the environment): a step "
             "holds a "
             "token of every running sequence",
             path);
    assert_string_equal(error_text(&err, text, sizeof(text)), wanted);
    unsetenv("MPISERVE_MAX_NUM_SEQS");
    assert_int_equal(load(&c, &err, "max_num_seqs: 600\n", NULL), ERR_INPUT);
    assert_string_equal(
        error_text(&err, text, sizeof(text)),
        "--max-num-batched-tokens: 512 is less than --max-num-seqs 600 (the job file, line 1): a step "
        "holds a token of every running sequence");
}

static void how_a_file_is_named(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    assert_int_equal(write_job("port: 5\n", 8, &err), 0);
    char *by_option[] = {(char *)"mpiserve", (char *)"--config", path, (char *)"/models/m"};
    assert_int_equal(config_load(&c, COUNT_OF(by_option), by_option, 1, &err), 0);
    assert_int_equal(c.port, 5);
    char *none[] = {(char *)"mpiserve", (char *)"/models/m"};
    setenv("MPISERVE_CONFIG", path, 1);
    assert_int_equal(config_load(&c, COUNT_OF(none), none, 1, &err), 0);
    assert_int_equal(c.port, 5);
    setenv("MPISERVE_CONFIG", "/nonexistent/other.yaml", 1);
    assert_int_equal(config_load(&c, COUNT_OF(none), none, 1, &err), ERR_NOT_FOUND);
    assert_string_equal(err.where, "/nonexistent/other.yaml");
    assert_int_equal(config_load(&c, COUNT_OF(by_option), by_option, 1, &err), 0); /* the command line wins */
    assert_string_equal(c.config_file, path);
    unsetenv("MPISERVE_CONFIG");
    char *behind_names[] = {(char *)"mpiserve", (char *)MODEL, (char *)"--served-model-name", (char *)"a",
                            path};
    assert_int_equal(config_load(&c, COUNT_OF(behind_names), behind_names, 1, &err), 0);
    assert_int_equal(c.port, 5);
    assert_int_equal(c.n_served_model_names, 1);
    char *two[] = {(char *)"mpiserve", path, (char *)"/models/m", (char *)"b.yml"};
    assert_int_equal(config_load(&c, COUNT_OF(two), two, 1, &err), ERR_INPUT);
    assert_string_equal(err.where, "b.yml");
    assert_non_null(strstr(err.message, "the job file is "));
    assert_true(file_is_job("a.yaml") && file_is_job("b/c.yml") && !file_is_job(".yaml") &&
                !file_is_job("a/.yml"));
    assert_true(!file_is_job("models/yaml") && !file_is_job("a.yaml/"));
}

static void equal_files_make_equal_jobs(void **state)
{
    (void)state;
    struct config a, b;
    struct error err;
    assert_int_equal(load(&a, &err, "port: 5\nmax_num_seqs: 7\n", MODEL, NULL), 0);
    assert_int_equal(load(&b, &err, "# the same\nmax-num-seqs: 7\nport: 5\nranks: 2\n", MODEL, NULL), 0);
    assert_true(config_fingerprint(&a) == config_fingerprint(&b));
    assert_int_equal(load(&b, &err, "port: 5\nmax_num_seqs: 6\n", MODEL, NULL), 0);
    assert_true(config_fingerprint(&a) != config_fingerprint(&b));
}

/* ---- bad files ----------------------------------------------------------------------------------------------------*/
struct bad {
    const char *text, *says; /* says: the whole error behind "FILE:" */
    int code;
};
#define ANCHOR "anchors (&) and aliases (*) are not understood here: write the value out, or put it in quotes"
#define NO_MAP "a job file is lines of `option: value`, not "
static const struct bad bad_files[] = {
    {"prot: 1\n", "1:1: prot: no such option; did you mean port; see --help", 0},
    {"port: 1\n  \nmax_num_seq: 1\n",
     "3:1: max_num_seq: no such option; did you mean max_num_seqs; see --help", 0},
    {"deployment: []\n", "1:1: deployment: no such option; did you mean deployments; see --help", 0},
    {"num_replica: 2\n", "1:1: num_replica: no such option; did you mean data_parallel_size; see --help", 0},
    {"xyzzy: 1\n", "1:1: xyzzy: no such option; see --help", 0},
    {"'': 1\n", "1:1: : no such option; see --help", 0},
    {"name: x\n", "1:1: name: stands in deployments; at the top of the file it is served_model_name", 0},
    {"nodes: 4\n", "1:1: nodes: is for the command line of `mpiserve plan` only", 0},
    {"gpus_per_nod: 4\n", "1:1: gpus_per_nod: no such option; see --help", 0},
    {"slo: {ttft: 5}\n", "1:7: ttft: slo has no such option; it has ttft_ms, itl_ms", 0},
    {"slo: {ttft_ms: 0}\n", "1:16: ttft_ms: `0` is not in the range none or 1..3600000", 0},
    {"slo: 5\n", "1:6: slo: needs a mapping (`name: value` lines), not a single value", 0},
    {"slo: {ttft_ms: 5}\nslo_ttft_ms: 5\n", "2:1: slo_ttft_ms: is given twice; the first is in line 1", 0},
    {"http_options: {slo: {ttft_ms: 5}}\n", "1:16: slo: no such option; see --help", 0},
    {"http_options: {slo_ttft_ms: 5}\n",
     "1:16: slo_ttft_ms: does not belong into http_options: put it at the top of the file, or into "
     "deployments",
     0},
    {"slo: {itl_ms: 5}\nadmission: slo\n",
     "2:12: admission: slo needs the time to the first token that is to be kept: --slo-ttft-ms, or in a job "
     "file slo: {ttft_ms: ...}",
     0},
    {"http_options:\n  prot: 1\n", "2:3: prot: no such option; did you mean port; see --help", 0},
    {"port: 70000\n", "1:7: port: `70000` is not in the range 0..65535", 0},
    {"port: eighty\n", "1:7: port: `eighty` is not a whole number in the range 0..65535", 0},
    {"port: 1.5\n", "1:7: port: `1.5` is not a whole number in the range 0..65535", 0},
    {"port: true\n", "1:7: port: `true` is not a whole number in the range 0..65535", 0},
    {"port: 0x10\n", "1:7: port: `0x10` is not a whole number in the range 0..65535", 0},
    {"port: \"80\"\n", "1:7: port: needs a number, not a text in quotes", 0},
    {"queue_timeout: '1'\n", "1:16: queue_timeout: needs a number, not a text in quotes", 0},
    {"port: [1]\n", "1:7: port: needs a single value, not a list", 0},
    {"port: {a: 1}\n", "1:7: port: needs a single value, not a mapping", 0},
    {"port:\n", "1:6: port: has no value: write one, or `null` for none", 0},
    {"port:\nhost: x\n", "1:6: port: has no value: write one, or `null` for none", 0},
    {"host: \"\"\n", "1:7: host: is empty", 0},
    {"host: \"a\\u0001\"\n", "1:7: host: has a control character at byte 1", 0},
    {"host: \"a\\0b\"\n", "1:7: a NUL character in a value", 0},
    {"block_size: 24\n", "1:13: block_size: `24` is not in the range 16..256, powers of two", 0},
    {"compute: fp8\n", "1:10: compute: `fp8` is not in the range auto|f32|bf16|f16", 0},
    {"seed: -1\n", "1:7: seed: `-1` is not in the range random or 0..2^63-1", 0},
    {"served_model_name: []\n", "1:20: served_model_name: is an empty list", 0},
    {"served_model_name: [a, a]\n", "1:24: served_model_name: `a` is named twice", 0},
    {"served_model_name: [a, [b]]\n", "1:24: served_model_name: needs a single value, not a list", 0},
    {"served_model_name: [a, ]\nport: {}\n", "2:7: port: needs a single value, not a mapping", 0},
    {"port: 1\nport: 2\n", "2:1: port: is given twice; the first is in line 1", 0},
    {"max-num-seqs: 1\nx: 1\nmax_num_seqs: 2\n", "3:1: max_num_seqs: is given twice; the first is in line 1",
     0},
    {"shutdown_timeout: 1\ngraceful-shutdown-timeout-s: 2\n",
     "2:1: graceful-shutdown-timeout-s: is given twice; the first is in line 1", 0},
    {"port: 1\nhttp_options: {port: 2}\n", "2:16: port: is given twice; the first is in line 1", 0},
    {"deployments: [{name: a, served_model_name: b}]\n",
     "1:25: served_model_name: is given twice; the first is in line 1", 0},
    {"api_key: none\napi_key_file: k\n", "2:1: api_key_file: excludes the api-key in line 1", 0},
    {"api_key: sk-1234567890\n",
     "1:10: api_key: a key in a job file is copied wherever the file goes: put it into a file of its own and "
     "use "
     "api_key_file, or into the environment as MPISERVE_API_KEY; `none` asks for no key",
     0},
    {"host: 0.0.0.0\napi_key: none\n",
     "2:10: api_key: none is only possible on 127.0.0.1: 0.0.0.0 can be reached from outside this machine",
     0},
    {"tensor-parallel-size: 0\n", "1:23: tensor-parallel-size: `0` is not in the range 1..4096", 0},
    {"config: other.yaml\n", "1:1: config: a job file cannot name another one", 0},
    {"model: ~/models/x\n",
     "1:8: model: `~/models/x`: ~ is for shells and stays as it is here: write the path out", 0},
    {"run_dir: $HOME/x\n",
     "1:10: run_dir: `$HOME/x`: $ is for shells and stays as it is here: write the path out", 0},
    {"http_options: 5\n", "1:15: http_options: needs a mapping (`name: value` lines), not a single value", 0},
    {"http_options: [port]\n", "1:15: http_options: needs a mapping (`name: value` lines), not a list", 0},
    {"http_options: {model: m}\n",
     "1:16: model: does not belong into http_options: put it at the top of the file, or into deployments", 0},
    {"deployments: [{port: 1}]\n",
     "1:16: port: does not belong into deployments: put it at the top of the file, or into http_options", 0},
    {"deployments: [{ranks: 1}]\n",
     "1:16: ranks: does not belong into deployments: put it at the top of the file", 0},
    {"deployments: {name: a}\n", "1:14: deployments: needs a list (`- name: ...`), not a mapping", 0},
    {"deployments: []\n", "1:14: deployments: is an empty list", 0},
    {"deployments: [a]\n",
     "1:15: deployments: a deployment is a mapping (`name: value` lines), not a single value", 0},
    {"deployments:\n  - name: a\n  - name: b\n",
     "3:5: deployments: a job serves one deployment in this release, this is a second one: start another job "
     "for it",
     ERR_UNSUPPORTED},
    {"ssl_keyfile: k\n",
     "1:1: ssl_keyfile: is not offered in this release: there is no TLS yet: put a proxy in front, or listen "
     "on "
     "127.0.0.1 and use a tunnel",
     ERR_UNSUPPORTED},
    {"autoscaling_config: {min_replicas: 1}\n",
     "1:1: autoscaling_config: is not offered in this release: the number of replicas is fixed: num_replicas",
     ERR_UNSUPPORTED},
    {"enable_chunked_prefill: false\n",
     "1:1: enable_chunked_prefill: is not offered in this release: prompts are always read in chunks",
     ERR_UNSUPPORTED},
    {"enforce_eager: maybe\n", "1:16: enforce_eager: `maybe` is not true or false", 0},
    {"enforce_eager: [1]\n", "1:16: enforce_eager: needs a single value, not a list", 0},
    {"port: &p 1\n", "1:7: " ANCHOR, 0},
    {"&top\nport: 1\n", "1:1: " ANCHOR, 0},
    {"a: *p\n", "1:4: " ANCHOR, 0},
    {"<<: *base\n", "1:5: " ANCHOR, 0},
    {"*a : 1\n", "1:1: " ANCHOR, 0},
    {"port: !!int 1\n", "1:7: tags (!) are not understood here: write the value alone, or put it in quotes",
     0},
    {"port: 1\n---\nport: 2\n", "2:1: a second document: a job file holds one", 0},
    {"- port\n", "1:1: " NO_MAP "a list", 0},
    {"8000\n", "1:1: " NO_MAP "a single value", 0},
    {"\"\"\n", "1:1: " NO_MAP "a single value", 0},
    {"[a]: 1\n", "1:1: a name is expected here, in front of the colon", 0},
    {"? {a: 1}\n: 2\n", "1:3: a name is expected here, in front of the colon", 0},
    {"http_options:\n\tport: 1\n", "2:1: a tab in front of the line: YAML is indented with blanks", 0},
    {"http_options:\n  host: x\n \tport: 1\n",
     "3:2: a tab in front of the line: YAML is indented with blanks", 0},
    {"host: \x01\n", "1:7: a control character: job files are text", 0},
    {"port: 1\n# \xc3\xa9 \xff\n", "2:5: not UTF-8: job files are text in UTF-8", 0},
    {"port: 1\n host: x\n",
     "2:6: not YAML: mapping values are not allowed in this context; lines are `option: value`", 0},
    {"host: \"x\n",
     "2:1: not YAML: found unexpected end of stream (while scanning a quoted scalar, which begins in line "
     "1); lines "
     "are `option: value`",
     0},
    {"host: @x\n",
     "1:7: not YAML: found character that cannot start any token (while scanning for the next token); lines "
     "are "
     "`option: value`",
     0},
    {"a: [1, 2\nport: 1\n",
     "2:5: not YAML: did not find expected ',' or ']' (while parsing a flow sequence, which begins in line "
     "1); lines "
     "are `option: value`",
     0},
    {"a: [[[[[[[[[[[[[[1]]]]]]]]]]]]]]\n", "1:15: nested too deeply", 0},
    {"compilation_config: {a: {b: [c, {d: e}]}}\nport: x\n",
     "2:7: port: `x` is not a whole number in the range 0..65535", 0},
};

static void bad_files_name_their_place(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad_files); i++) {
        const struct bad *b = &bad_files[i];
        struct config c;
        struct error err;
        char text[1100], wanted[1100];
        int rc = load(&c, &err, b->text, NULL);
        snprintf(wanted, sizeof(wanted), "%s:%s", path, b->says);
        assert_string_equal(error_text(&err, text, sizeof(text)), wanted);
        assert_int_equal(rc, b->code ? b->code : ERR_INPUT);
        assert_null(strstr(text, "sk-1"));
    }
}

static void what_is_no_job_file(void **state)
{
    (void)state;
    struct config c;
    struct error err;
    char *argv[] = {(char *)"mpiserve", path};
    snprintf(path, sizeof(path), "%s/none.yaml", folder);
    assert_int_equal(config_load(&c, 2, argv, 1, &err), ERR_NOT_FOUND);
    assert_string_equal(err.where, path);
    snprintf(path, sizeof(path), "%s/folder.yaml", folder);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(config_load(&c, 2, argv, 1, &err), ERR_INPUT);
    assert_string_equal(err.message, "is a folder, not a file");
    assert_int_equal(rmdir(path), 0);
    snprintf(path, sizeof(path), "%s/pipe.yaml", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(config_load(&c, 2, argv, 1, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "is no plain file"));
    unlink(path);
}

/* n times the text, and then the end. */
static int load_repeated(const char *text, int n, const char *end, struct error *err)
{
    struct config c;
    struct buf all = {0};
    for (int i = 0; i < n; i++) strchr(text, '%') ? buf_printf(&all, "k%d: 1\n", i) : buf_text(&all, text);
    buf_text(&all, end);
    assert_int_equal(write_job(all.data, all.len, err), 0);
    buf_release(&all);
    char *argv[] = {(char *)"mpiserve", path, (char *)MODEL};
    return config_load(&c, 3, argv, 1, err);
}

static void huge_files(void **state)
{
    (void)state;
    struct error err;
    assert_int_equal(load_repeated("# comment\n", YAML_FILE_MAX / 10 - 1, "port: 1\n", &err), 0);
    assert_int_equal(load_repeated("# comment\n", YAML_FILE_MAX / 10 + 1, "port: 1\n", &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "the limit is 262144"));
    assert_int_equal(load_repeated("[", 200000, "", &err), ERR_INPUT);
    assert_string_equal(err.message, "nested too deeply");
    assert_int_equal(load_repeated("- ", 100000, "", &err), ERR_INPUT);
    assert_string_equal(err.message, "nested too deeply");
    assert_int_equal(load_repeated("{a: ", 60000, "", &err), ERR_INPUT);
    assert_string_equal(err.message, "nested too deeply");
    assert_int_equal(load_repeated("%", 20000, "", &err), ERR_INPUT);
    assert_string_equal(err.message, "too many entries in one mapping");
    assert_int_equal(load_repeated("x", 200000, ": 1\n", &err), ERR_INPUT);
    assert_int_equal(load_repeated("\"", 200001, "\n", &err), ERR_INPUT);
}

static void a_long_path_keeps_the_line(void **state)
{
    (void)state;
    char far[400], out[256];
    memset(far, 'd', sizeof(far));
    far[sizeof(far) - 1] = 0;
    yaml_where(far, 12, 34, "port", out, sizeof(out));
    assert_string_equal(out + strlen(out) - strlen(":12:34: port"), ":12:34: port");
    assert_memory_equal(out, "...d", 4);
}

/* ---- damage -------------------------------------------------------------------------------------------------------*/
static void read_seed(struct buf *text)
{
    static const char more[] =
        "\nhttp_options: {port: 1, host: x}\ndeployments:\n  - name: a\n    model: 'm'\n"
        "served_model_name: [a, \"b\"]\nenforce_eager: true\nmax_num_seqs: 3\nseed: ~\n"
        "revision: |\n  text\n  more\n";
    buf_text(text, more);
    assert_true(text->len < 400);
}

/* A byte changed, a piece cut out, a piece of somewhere else put in. */
static void damage_file(struct buf *text, u64 seed)
{
    static const char *const pieces[] = {
        "\t", "&a ", "*a", "!!x ",      "---\n", "...\n", "[", "]",   "{",         "}",    ": ",
        "- ", "? ",  "\"", "'",         "|\n",   ">-\n",  "#", "\\x", "%YAML 9\n", "\xff", "\xe2\x80\xa8",
        "\r", "\n",  "  ", "port: 1\n", "<<: ",  "~",     "@", "`",   "\\0"};
    u32 draw[4];
    for (u32 i = 0; i < 1 + seed % 4; i++) {
        rng_block(seed, i, 0, draw);
        size_t at = text->len ? draw[0] % text->len : 0, n = draw[2] % 12;
        if (draw[1] % 3 == 0 && text->len) {
            text->data[at] = (char)draw[3];
        } else if (draw[1] % 3 == 1) {
            n = MIN_OF(n, text->len - at);
            memmove(text->data + at, text->data + at + n, text->len - at - n);
            text->len -= n;
        } else {
            const char *piece = pieces[draw[3] % COUNT_OF(pieces)];
            n = strlen(piece);
            buf_reserve(text, n);
            memmove(text->data + at + n, text->data + at, text->len - at);
            memcpy(text->data + at, piece, n);
            text->len += n;
        }
        text->data[text->len] = 0;
    }
}

/* Whatever the file: read, or refused with one error that names a place in it. */
static void damaged_files(void **state)
{
    (void)state;
    enum { ROUNDS = 20000, LOADED = 1500 };
    struct buf text = {0};
    int good = 0;
    for (u64 i = 0; i < ROUNDS; i++) {
        struct arena arena;
        struct node *root;
        struct error err = {0};
        struct config c;
        buf_clear(&text);
        read_seed(&text);
        damage_file(&text, i);
        arena_init(&arena, 0);
        int rc = yaml_read("f", text.data, text.len, &arena, &root, &err);
        arena_release(&arena);
        if (i < LOADED) {
            assert_int_equal(write_job(text.data, text.len, &err), 0);
            char *argv[] = {(char *)"mpiserve", path, (char *)MODEL};
            rc = config_load(&c, 3, argv, 1, &err);
        }
        good += rc == 0;
        if (rc == 0) continue;
        int line, column;
        assert_int_equal(rc, err.code);
        assert_true(err.message[0] && !strchr(err.message, '\n'));
        const char *place = i < LOADED ? err.where + strlen(path) : err.where + 1;
        assert_int_equal(sscanf(place, ":%d:%d", &line, &column), 2);
        assert_true(line >= 1 && column >= 1);
    }
    assert_true(good > ROUNDS / 100 && good < ROUNDS);
    buf_release(&text);
}

/* ---- the files that come with the program --------------------------------------------------------------------------*/
static void every_line_of_the_example_can_be_used(void **state)
{
    (void)state;
    struct buf all = {0};
    struct error err;
    struct config c;
    int n = 0;
    assert_int_equal(file_read("jobs/every-option.yaml", 1 << 20, &all, &err), 0);
    for (char *line = all.data, *next; *line; line = next) {
        next = line + strcspn(line, "\n");
        next += *next == '\n';
        if (line[0] != '#' || line[1] == ' ' || line[1] == '\n') continue;
        char one[200];
        snprintf(one, sizeof(one), "%.*s", (int)(next - line - 1), line + 1);
        assert_int_equal(load(&c, &err, one, MODEL, NULL), 0);
        n++;
    }
    buf_release(&all);
    size_t possible = 0;
    for (size_t i = 0; i < option_count; i++) possible += !(option_table[i].flags & OPTION_NO_FILE);
    assert_int_equal(n, possible);
}

static void the_other_files_are_good(void **state)
{
    (void)state;
    static const char *const files[] = {"jobs/demo.yaml", "jobs/workstation.yaml", "jobs/every-option.yaml"};
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        struct config c;
        struct error err;
        char *argv[] = {(char *)"mpiserve", (char *)files[i], (char *)"/models/m"};
        assert_int_equal(config_load(&c, 3, argv, 1, &err), 0);
        assert_int_equal(c.n_notes, 0);
    }
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_option_has_its_place),
        cmocka_unit_test(the_maps_of_ray_serve),
        cmocka_unit_test(service_levels),
        cmocka_unit_test(nothing_in_a_file_is_fine),
        cmocka_unit_test(precedence),
        cmocka_unit_test(rules_between_options_name_both_places),
        cmocka_unit_test(how_a_file_is_named),
        cmocka_unit_test(equal_files_make_equal_jobs),
        cmocka_unit_test(bad_files_name_their_place),
        cmocka_unit_test(what_is_no_job_file),
        cmocka_unit_test(huge_files),
        cmocka_unit_test(a_long_path_keeps_the_line),
        cmocka_unit_test(damaged_files),
        cmocka_unit_test(every_line_of_the_example_can_be_used),
        cmocka_unit_test(the_other_files_are_good),
    };
    return cmocka_run_group_tests_name("config_file", tests, folder_make, folder_drop);
}
