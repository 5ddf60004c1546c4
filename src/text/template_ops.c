/* Operators: Python's arithmetic, concatenation and comparison. */
#include "text/template.h"

#include <math.h>
#include <string.h>

static _Noreturn void bad_operands(struct render *r, enum op op, struct value a, struct value b)
{
    static const char *const names[] = {[OP_ADD] = "+",    [OP_SUB] = "-", [OP_MUL] = "*", [OP_DIV] = "/",
                                        [OP_FLOOR] = "//", [OP_MOD] = "%", [OP_POW] = "**"};
    if (a.kind == V_UNDEFINED || b.kind == V_UNDEFINED)
        raise_error(r, "%s", a.kind == V_UNDEFINED ? a.text : b.text);
    raise_error(r, "unsupported operand types for %s: '%s' and '%s'", names[op], type_name(a), type_name(b));
}

static struct value power_int(struct render *r, i64 a, i64 b)
{
    i64 result = 1, base = a, times = b;
    bool over = false;
    if (b < 0 && a == 0) raise_error(r, "0.0 cannot be raised to a negative power");
    if (b < 0) return v_real(pow((double)a, (double)b));
    for (; b; b >>= 1) {
        if (b & 1) over = over || __builtin_mul_overflow(result, a, &result);
        if (b > 1) over = over || __builtin_mul_overflow(a, a, &a);
        if (over) return big_binary(r, OP_POW, v_int(base), v_int(times));
    }
    return v_int(result);
}

static struct value arithmetic_int(struct render *r, enum op op, i64 a, i64 b)
{
    i64 out = 0, left = a, right = b;
    bool over = false;
    if ((op == OP_DIV || op == OP_FLOOR || op == OP_MOD) && b == 0) raise_error(r, "division by zero");
    switch (op) {
    case OP_ADD: over = __builtin_add_overflow(a, b, &out); break;
    case OP_SUB: over = __builtin_sub_overflow(a, b, &out); break;
    case OP_MUL: over = __builtin_mul_overflow(a, b, &out); break;
    case OP_DIV: return v_real((double)((long double)a / (long double)b));
    case OP_POW: return power_int(r, a, b);
    default: /* rounded towards minus infinity */
        if (b == -1) {
            over = op == OP_FLOOR && __builtin_sub_overflow(0, a, &out);
            break;
        }
        out = op == OP_FLOOR ? a / b - (a % b != 0 && (a % b < 0) != (b < 0))
                             : a % b + (a % b != 0 && (a % b < 0) != (b < 0) ? b : 0);
    }
    return over ? big_binary(r, op, v_int(left), v_int(right)) : v_int(out);
}

static struct value arithmetic_real(struct render *r, enum op op, double a, double b)
{
    if ((op == OP_DIV || op == OP_FLOOR || op == OP_MOD) && b == 0) raise_error(r, "division by zero");
    switch (op) {
    case OP_ADD: return v_real(a + b);
    case OP_SUB: return v_real(a - b);
    case OP_MUL: return v_real(a * b);
    case OP_DIV: return v_real(a / b);
    case OP_POW:
        if ((a < 0 && b != floor(b)) || (a == 0 && b < 0)) raise_unsupported(r, "this power");
        return v_real(pow(a, b));
    default: break;
    }
    double mod = fmod(a, b), div = (a - mod) / b;
    if (mod != 0 && (mod < 0) != (b < 0)) {
        mod += b;
        div -= 1;
    }
    if (op == OP_MOD) return v_real(mod != 0 ? mod : copysign(0, b));
    double whole = floor(div);
    if (div - whole > 0.5) whole += 1;
    return v_real(div != 0 ? whole : copysign(0, a / b));
}

/* + with a safe text escapes the other one, as markupsafe does. */
static struct value join_texts(struct render *r, struct value a, struct value b)
{
    struct writer w = {.safe = a.safe || b.safe};
    if (w.safe) {
        a = text_escape(r, a);
        b = text_escape(r, b);
    }
    write_part(r, &w, a, 0, a.len);
    write_part(r, &w, b, 0, b.len);
    return written(r, &w);
}

static struct value join_lists(struct render *r, struct value a, struct value b)
{
    struct list *l = list_new(r, a.list->n + b.list->n);
    for (u32 i = 0; i < a.list->n; i++) list_add(r, l, a.list->items[i]);
    for (u32 i = 0; i < b.list->n; i++) list_add(r, l, b.list->items[i]);
    spend(r, l->n);
    return v_list((enum value_kind)a.kind, l);
}

static struct value repeat(struct render *r, struct value v, i64 times)
{
    spend(r, (u64)MAX_OF(times, (i64)0));
    if (v.kind == V_TEXT) {
        struct writer w = {.safe = v.safe};
        for (i64 i = 0; i < times && v.len; i++) write_part(r, &w, v, 0, v.len);
        return written(r, &w);
    }
    struct list *l = list_new(r, 0);
    for (i64 i = 0; i < times && v.list->n; i++) {
        spend(r, v.list->n);
        for (u32 k = 0; k < v.list->n; k++) list_add(r, l, v.list->items[k]);
    }
    return v_list((enum value_kind)v.kind, l);
}

static bool is_sequence_value(struct value v)
{
    return v.kind == V_TEXT || v.kind == V_LIST || v.kind == V_TUPLE;
}

struct value binary(struct render *r, enum op op, struct value a, struct value b)
{
    i64 i, k;
    if (is_number(a) && is_number(b)) {
        if (as_int(a, &i) && as_int(b, &k)) return arithmetic_int(r, op, i, k);
        if (a.kind != V_REAL && b.kind != V_REAL) return big_binary(r, op, a, b);
        if (a.kind == V_BIG) a = v_real(big_real(r, a));
        if (b.kind == V_BIG) b = v_real(big_real(r, b));
        return arithmetic_real(r, op, as_real(a), as_real(b));
    }
    if (op == OP_ADD && a.kind == V_TEXT && b.kind == V_TEXT) return join_texts(r, a, b);
    if (op == OP_ADD && a.kind == b.kind && (a.kind == V_LIST || a.kind == V_TUPLE))
        return join_lists(r, a, b);
    if (op == OP_MUL && is_sequence_value(a) && as_int(b, &k)) return repeat(r, a, k);
    if (op == OP_MUL && is_sequence_value(b) && as_int(a, &i)) return repeat(r, b, i);
    if (op == OP_MOD && a.kind == V_TEXT) return format_percent(r, a, b);
    if ((a.kind == V_VIEW || b.kind == V_VIEW) && op == OP_SUB)
        raise_unsupported(r, "a difference of dict views");
    bad_operands(r, op, a, b);
}

bool compare(struct render *r, enum op op, struct value a, struct value b)
{
    int c;
    switch (op) {
    case OP_EQ: return equal(r, a, b);
    case OP_NE: return !equal(r, a, b);
    case OP_IN: return contains(r, b, a);
    case OP_NOT_IN: return !contains(r, b, a);
    case OP_LT: return order(r, a, b, "<") == -1;
    case OP_LE: c = order(r, a, b, "<="); return c == -1 || c == 0;
    case OP_GT: return order(r, a, b, ">") == 1;
    default: c = order(r, a, b, ">="); return c == 0 || c == 1;
    }
}
