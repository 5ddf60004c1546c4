/* Tests: what stands behind "is". */
#include "text/template.h"

#include <string.h>

#define TEST(name, answer)                                                                                   \
    static struct value name(struct render *r, struct value in, const struct call *call,                     \
                             const struct value *arg)                                                        \
    {                                                                                                        \
        (void)r, (void)in, (void)call, (void)arg;                                                            \
        return v_bool(answer);                                                                               \
    }

static bool is_sequence(struct value v)
{
    return v.kind == V_TEXT || v.kind == V_LIST || v.kind == V_TUPLE || v.kind == V_DICT ||
           v.kind == V_RANGE || v.kind == V_UNDEFINED;
}

static i64 need_int(struct render *r, struct value v)
{
    i64 i;
    if (!as_int(v, &i)) raise_error(r, "not an integer: '%s'", type_name(v));
    return i;
}

static bool is_remainder(struct render *r, struct value v, i64 by, i64 remainder)
{
    return equal(r, binary(r, OP_MOD, v, v_int(by)), v_int(remainder));
}

/* Identity, where values have no address of their own. */
static bool is_same(struct render *r, struct value a, struct value b)
{
    if (a.kind != b.kind) return false;
    if (a.kind == V_NONE) return true;
    if (a.kind == V_BOOL) return a.b == b.b;
    if (a.kind == V_INT && a.i >= -5 && a.i <= 256)
        return a.i == b.i; /* Python keeps one object of each of these */
    if (!equal(r, a, b)) return false;
    raise_unsupported(r, "sameas for such values");
}

static bool is_known(struct value name, const struct function *(*find)(const char *))
{
    char s[64] = "";
    if (name.kind == V_TEXT && name.len < sizeof(s)) memcpy(s, name.text, name.len);
    return find(s) != NULL;
}

static bool is_refused(struct value name)
{
    char s[64] = "";
    if (name.kind == V_TEXT && name.len < sizeof(s)) memcpy(s, name.text, name.len);
    return filter_is_refused(s);
}

TEST(boolean, in.kind == V_BOOL)
TEST(callable, in.kind == V_FUNCTION || in.kind == V_MACRO || in.kind == V_METHOD || in.kind == V_LOOP ||
                   in.kind == V_JOINER || in.kind == V_UNDEFINED)
TEST(defined, in.kind != V_UNDEFINED)
TEST(divisible, is_remainder(r, in, need_int(r, arg[0]), 0))
TEST(eq, compare(r, OP_EQ, in, arg[0]))
TEST(escaped, in.kind == V_TEXT && in.safe)
TEST(even, is_remainder(r, in, 2, 0))
TEST(is_false, in.kind == V_BOOL && !in.b)
TEST(is_filter, is_known(in, filter_find) || is_refused(in))
TEST(is_real, in.kind == V_REAL)
TEST(ge, compare(r, OP_GE, in, arg[0]))
TEST(gt, compare(r, OP_GT, in, arg[0]))
TEST(is_in, contains(r, arg[0], in))
TEST(integer, in.kind == V_INT || in.kind == V_BIG)
TEST(iterable, is_sequence(in) || in.kind == V_VIEW || in.kind == V_GENERATOR || in.kind == V_LOOP)
TEST(le, compare(r, OP_LE, in, arg[0]))
TEST(lower, text_is_case(to_text(r, in), false))
TEST(lt, compare(r, OP_LT, in, arg[0]))
TEST(mapping, in.kind == V_DICT)
TEST(ne, compare(r, OP_NE, in, arg[0]))
TEST(none, in.kind == V_NONE)
TEST(number, is_number(in))
TEST(odd, is_remainder(r, in, 2, 1))
TEST(same, is_same(r, in, arg[0]))
TEST(sequence, is_sequence(in))
TEST(string, in.kind == V_TEXT)
TEST(is_test, is_known(in, test_find))
TEST(yes, in.kind == V_BOOL && in.b)
TEST(not_defined, in.kind == V_UNDEFINED)
TEST(upper, text_is_case(to_text(r, in), true))

static const struct function tests[] = {
    {"!=", ne, "other", 1},
    {"<", lt, "other", 1},
    {"<=", le, "other", 1},
    {"==", eq, "other", 1},
    {">", gt, "other", 1},
    {">=", ge, "other", 1},
    {"boolean", boolean, "", 0},
    {"callable", callable, "", 0},
    {"defined", defined, "", 0},
    {"divisibleby", divisible, "num", 1},
    {"eq", eq, "other", 1},
    {"equalto", eq, "other", 1},
    {"escaped", escaped, "", 0},
    {"even", even, "", 0},
    {"false", is_false, "", 0},
    {"filter", is_filter, "", 0},
    {"float", is_real, "", 0},
    {"ge", ge, "other", 1},
    {"greaterthan", gt, "other", 1},
    {"gt", gt, "other", 1},
    {"in", is_in, "seq", 1},
    {"integer", integer, "", 0},
    {"iterable", iterable, "", 0},
    {"le", le, "other", 1},
    {"lessthan", lt, "other", 1},
    {"lower", lower, "", 0},
    {"lt", lt, "other", 1},
    {"mapping", mapping, "", 0},
    {"ne", ne, "other", 1},
    {"none", none, "", 0},
    {"number", number, "", 0},
    {"odd", odd, "", 0},
    {"sameas", same, "other", 1},
    {"sequence", sequence, "", 0},
    {"string", string, "", 0},
    {"test", is_test, "", 0},
    {"true", yes, "", 0},
    {"undefined", not_defined, "", 0},
    {"upper", upper, "", 0},
};

const struct function *test_find(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(tests); i++) {
        if (strcmp(tests[i].name, name) == 0) return &tests[i];
    }
    return NULL;
}
