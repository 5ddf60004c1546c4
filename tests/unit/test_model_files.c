/* model/: safetensors and their index: what is read, and hostile files. */
#include "folder.h"
#include "model/safetensors.h"
#include "mpiserve/model.h"
#include <errno.h>

static void test_reference_tensors(void **state)
{
    (void)state;
    struct error e = {0};
    struct model_files *f = model_open(data_dir("llama_untied_sharded"), &e);
    if (!f) fail_msg("%s", e.message);
    const struct tensor *t = model_tensor(f, "model.layers.1.mlp.down_proj.weight");
    assert_non_null(t);
    assert_int_equal(t->dtype, DTYPE_F32);
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->dims[0], 64);
    assert_int_equal(t->dims[1], 128);
    assert_int_equal(t->bytes, 64 * 128 * 4);
    assert_null(model_tensor(f, "model.layers.2.mlp.down_proj.weight"));
    float whole[64], half[32];
    const struct tensor *norm = model_tensor(f, "model.norm.weight");
    assert_int_equal(model_read(f, norm, 0, whole, sizeof whole, &e), 0);
    assert_int_equal(model_read(f, norm, 128, half, sizeof half, &e), 0);
    assert_memory_equal(whole + 32, half, sizeof half);
    static float matrix[64 * 128], part[40 * 32]; /* columns 32..63 of rows 3..42 */
    assert_int_equal(model_read(f, t, 0, matrix, sizeof matrix, &e), 0);
    assert_int_equal(model_read_rows(f, t, (3 * 128 + 32) * 4, 128 * 4, part, 32 * 4, 40, &e), 0);
    for (u32 i = 0; i < 40; i++) assert_memory_equal(part + i * 32, matrix + (3 + i) * 128 + 32, 32 * 4);
    assert_int_equal(model_read_rows(f, t, 128 * 4, 128 * 4, part, 128 * 4, 10, &e), 0); /* whole rows */
    assert_memory_equal(part, matrix + 128, 10 * 128 * 4);
    u32 with_norm = 0;
    for (size_t i = 0; i < model_tensor_count(f); i++)
        with_norm += model_tensor_at(f, i) == model_tensor(f, model_tensor_name(f, i));
    assert_int_equal(with_norm, 21);
    model_close(f);
}

/* ---- safetensors ---------------------------------------------------------------------------------------------*/
#define ONE(name, dtype, shape, a, b)                                                                        \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" a "," b "]}"

static void test_safetensors_accepted(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data, count;
    } good[] = {
        {"{}", 0, 0},
        {" {" ONE("a", "F32", "[2,3]", "0", "24") "}   ", 24, 1},
        {"{" ONE("b", "BF16", "[3]", "4", "10") "," ONE("a", "F32", "[]", "0", "4") "}", 10, 2},
        {"{\"__metadata__\":{\"format\":\"pt\"}," ONE("a", "U8", "[0,7]", "0", "0") "," ONE("b", "U8", "[1]",
                                                                                            "0", "1") "}",
         1, 2},
        {"{" ONE("a", "F8_E4M3", "[2,2]", "0",
                 "4") "," ONE("b", "F4", "[4]", "4", "6") "," ONE("c", "NEW_TYPE", "[9]", "6", "8") "}",
         8, 3},
        {"{" ONE("five", "F32", "[1,1,1,1,2]", "0", "8") "}", 8, 1},
    };
    struct error e;
    for (size_t i = 0; i < COUNT_OF(good); i++) {
        folder_empty();
        put_tensors("model.safetensors", good[i].header, 0, good[i].data);
        struct model_files *f = model_open(folder, &e);
        if (!f) fail_msg("%s: %s", good[i].header, e.message);
        assert_int_equal(model_tensor_count(f), good[i].count);
        model_close(f);
    }
}

static void test_safetensors_refused(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        u64 lie;
        size_t data;
        const char *part;
    } bad[] = {
        {"{" ONE("a", "F32", "[2]", "0", "8") "}", 1000, 8, "does not fit in a file"},
        {"{" ONE("a", "F32", "[2]", "0", "8") "}", (u64)1 << 63, 8, "does not fit in a file"},
        {"{" ONE("a", "F32", "[2]", "0", "8") "}", (u64)0 - 200, 8, "does not fit in a file"},
        {"{" ONE("a", "F32", "[2]", "0", "8") "}", 3, 8, "not valid JSON"},
        {"{" ONE("a", "F32", "[2]", "0", "8") "}", (u64)0 - 3, 8, "not valid JSON"},
        {"", 0, 0, "not valid JSON"},
        {"[]", 0, 0, "not a JSON object"},
        {"{" ONE("a", "F32", "[2]", "0", "8") "}", 0, 7, "truncated or damaged"},
        {"{" ONE("a", "F32", "[2]", "0", "8") "}", 0, 9, "1 bytes after the last tensor"},
        {"{" ONE("a", "F32", "[2]", "4", "12") "}", 0, 12, "4 bytes before tensor a"},
        {"{" ONE("a", "F32", "[2]", "0", "8") "," ONE("b", "F32", "[2]", "4", "12") "}", 0, 12,
         "b (from byte 4 of the data) overlaps tensor a (to byte 8)"},
        {"{" ONE("a", "F32", "[2]", "0", "8") "," ONE("b", "F32", "[2]", "0", "8") "}", 0, 8, "overlaps"},
        {"{" ONE("a", "F32", "[2]", "0", "8") "," ONE("b", "F32", "[1]", "12", "16") "}", 0, 16,
         "4 bytes before tensor b"},
        {"{" ONE("a", "F32", "[2]", "0", "8") "," ONE("a", "F32", "[2]", "8", "16") "}", 0, 16, "duplicate"},
        {"{" ONE("a", "F32", "[3]", "0", "8") "}", 0, 8, "not the size of its shape in F32"},
        {"{" ONE("a", "BF16", "[2]", "0", "8") "}", 0, 8, "not the size of its shape in BF16"},
        {"{" ONE("a", "F4", "[3]", "0", "1") "}", 0, 1, "not the size of its shape"},
        {"{" ONE("a", "F32", "[4294967296,4294967296]", "0", "0") "}", 0, 0, "too large"},
        {"{" ONE("a", "F32", "[4611686018427387904]", "0", "0") "}", 0, 0, "not the size of its shape"},
        {"{" ONE("a", "F32", "[9223372036854775807,3]", "0", "0") "}", 0, 0, "too large"},
        {"{" ONE("a", "F32", "[99999999999999999999]", "0", "0") "}", 0, 0, "too large"},
        {"{" ONE("a", "F32", "[-2]", "0", "8") "}", 0, 8, "not a list of sizes"},
        {"{" ONE("a", "F32", "[2.0]", "0", "8") "}", 0, 8, "not a list of sizes"},
        {"{" ONE("a", "F32", "8", "0", "8") "}", 0, 8, "not a list of sizes"},
        {"{" ONE("a", "F32", "[2]", "8", "0") "}", 0, 8, "data_offsets"},
        {"{" ONE("a", "F32", "[2]", "-8", "0") "}", 0, 8, "data_offsets"},
        {"{" ONE("a", "F32", "[2]", "0", "8,9") "}", 0, 8, "data_offsets"},
        {"{" ONE("a", "F32", "[2]", "0", "9223372036854775807") "}", 0, 8, "truncated or damaged"},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 0, 8, "no dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 0, 8, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 0, 8, "data_offsets"},
        {"{\"a\":7}", 0, 8, "no dtype"},
        {"{" ONE("", "F32", "[2]", "0", "8") "}", 0, 8, "a tensor's name is empty"},
        {"{" ONE("a\\u0000b", "F32", "[2]", "0", "8") "}", 0, 8, "NUL"},
        {"{\"__metadata__\":{\"n\":1}}", 0, 0, "__metadata__"},
        {"{\"__metadata__\":[]}", 0, 0, "__metadata__"},
        {"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", 0, 0, "64 levels"},
    };
    struct error e;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        folder_empty();
        put_tensors("model.safetensors", bad[i].header, bad[i].lie, bad[i].data);
        memset(&e, 0, sizeof e);
        struct model_files *f = model_open(folder, &e);
        if (f) fail_msg("row %zu was accepted: %s", i, bad[i].header);
        expect_error(&e, bad[i].part);
        expect_error(&e, "model.safetensors");
    }
    folder_empty();
    put("model.safetensors", "short", 5);
    assert_null(model_open(folder, &e));
    expect_error(&e, "5 bytes are too few");
    folder_empty();
    assert_null(model_open(folder, &e));
    expect_error(&e, "neither model.safetensors nor");
}

static void test_special_files(void **state)
{
    (void)state;
    char path[PATH_LEN];
    struct error e;
    folder_empty();
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_null(model_open(folder, &e));
    expect_error(&e, "not a regular file");
    unlink(path);
    assert_int_equal(symlink("/nowhere/at/all", path), 0);
    assert_null(model_open(folder, &e));
    unlink(path);
    assert_int_equal(symlink("model.safetensors", path), 0); /* to itself */
    assert_null(model_open(folder, &e));
    expect_error(&e, "model.safetensors: ");
    expect_error(&e, strerror(ELOOP));
    unlink(path);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    assert_int_equal(symlink("model.safetensors.index.json", path), 0);
    assert_null(model_open(folder, &e));
    expect_error(&e, strerror(ELOOP));
    expect_error(&e, "index.json");
    unlink(path);
}

/* The longest header that is read, one that is longer, and a file that says more than it is. Holes: nothing is written. */
static void test_large_headers(void **state)
{
    (void)state;
    static const struct {
        u64 header, file;
        const char *part;
    } rows[] = {
        {100000000, 100000008, "NUL byte"},
        {100000001, 100000009, "larger than 100000000"},
        {100000000, 100000007, "does not fit in a file of 100000007"},
        {UINT64_MAX, 4096, "does not fit in a file of 4096"},
        {UINT64_MAX - 7, 4096, "does not fit in a file of 4096"},
    };
    char path[PATH_LEN];
    struct error e;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        folder_empty();
        put("model.safetensors", &rows[i].header, sizeof rows[i].header);
        assert_int_equal(truncate(path, (off_t)rows[i].file), 0);
        assert_null(model_open(folder, &e));
        expect_error(&e, rows[i].part);
        expect_error(&e, path);
    }
}

static void test_index_refused(void **state)
{
    (void)state;
    static const struct {
        const char *index, *part;
    } bad[] = {
        {"{}", "\"weight_map\" must be an object"},
        {"{\"weight_map\":{}}", "\"weight_map\" must be an object"},
        {"{\"weight_map\":[\"x\"]}", "\"weight_map\" must be an object"},
        {"{\"weight_map\":{\"a\":\"one\"", "index.json"},
        {"{\"weight_map\":{\"a\":\"../one\"}}", "a file of this folder, not \"../one\""},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "a file of this folder"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "a file of this folder"},
        {"{\"weight_map\":{\"a\":\"\"}}", "a file of this folder"},
        {"{\"weight_map\":{\"a\":\"one\\u0000\"}}", "a file of this folder"},
        {"{\"weight_map\":{\"a\":1}}", "a file of this folder"},
        {"{\"weight_map\":{\"a\":\"three\"}}", "three"},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"one\"}}", "tensor b is not in one"},
        {"{\"weight_map\":{\"b\":\"one\",\"a\":\"two\"}}", "tensor b is in two, not in one"},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"copy\"}}", "is in one as well"},
        {"{\"weight_map\":{\"a\":\"one\",\"a\":\"two\"}}", "duplicate"},
    };
    struct error e;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        folder_empty();
        put_tensors("one", "{" ONE("a", "F32", "[2]", "0", "8") "}", 0, 8);
        put_tensors("two", "{" ONE("b", "F32", "[2]", "0", "8") "}", 0, 8);
        put_tensors("copy", "{" ONE("a", "F32", "[1]", "0", "4") "," ONE("b", "F32", "[1]", "4", "8") "}", 0,
                    8);
        put("model.safetensors.index.json", bad[i].index, strlen(bad[i].index));
        memset(&e, 0, sizeof e);
        if (model_open(folder, &e)) fail_msg("accepted: %s", bad[i].index);
        expect_error(&e, bad[i].part);
    }
}

static void test_file_shrinks(void **state)
{
    (void)state;
    char path[PATH_LEN], to[8];
    struct error e;
    folder_empty();
    put_tensors("model.safetensors", "{" ONE("a", "F32", "[2]", "0", "8") "}", 0, 8);
    struct model_files *f = model_open(folder, &e);
    assert_non_null(f);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_int_equal(truncate(path, 20), 0);
    assert_int_equal(model_read(f, model_tensor(f, "a"), 0, to, 8, &e), ERR_IO);
    expect_error(&e, "became shorter");
    model_close(f);
}

/* ---- mutations: whatever the bytes, an answer and no crash ----------*/
static void test_mutated_header(void **state)
{
    (void)state;
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"}," ONE("model.norm.weight", "F32", "[64]", "0", "256") "," ONE(
            "lm_head.weight", "BF16", "[320,64]", "256", "41216") "," ONE("x", "U8", "[0]", "41216",
                                                                          "41216") "}";
    struct mutator m = {0};
    u32 refused = 0;
    for (int i = 0; i < 6000; i++) {
        char text[sizeof header + 16];
        struct tensor_list list;
        struct error e = {0};
        memcpy(text, header, sizeof header);
        size_t len = mutate(&m, text, sizeof header - 1);
        tensor_list_init(&list);
        int rc = safetensors_parse(text, len, 8 + len, 41216, "file", 0, &list, &e);
        refused += rc < 0;
        assert_true(rc == 0 || e.message[0]);
        for (u32 t = 0; !rc && t < list.n; t++) {
            assert_true(list.items[t].t.offset >= 8 + len);
            assert_true(list.items[t].t.offset + list.items[t].t.bytes <= 8 + len + 41216);
        }
        tensor_list_release(&list);
    }
    assert_true(refused > 3000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_tensors),   cmocka_unit_test(test_safetensors_accepted),
        cmocka_unit_test(test_safetensors_refused), cmocka_unit_test(test_special_files),
        cmocka_unit_test(test_large_headers),       cmocka_unit_test(test_index_refused),
        cmocka_unit_test(test_file_shrinks),        cmocka_unit_test(test_mutated_header),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("model_files", tests, folder_make, folder_drop);
}
