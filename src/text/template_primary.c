/* Parsing what operators stand between: names, literals, members, calls, filters, tests. */
#include "text/template.h"

#include <string.h>

static struct node *constant(struct parser *p, struct value v)
{
    struct node *n = node_new(p, N_CONST);
    n->value = v;
    next(p);
    return n;
}

/* Adjacent literals join. */
static struct node *text_literal(struct parser *p)
{
    u32 len = 0;
    const struct lexeme *from = p->t;
    struct node *n = node_new(p, N_CONST);
    for (; p->t->kind == T_TEXT; next(p)) len += p->t->len;
    char *text = arena_alloc(p->arena, len + 1), *to = text;
    for (const struct lexeme *t = from; t < p->t; t++) to = (char *)memcpy(to, t->text, t->len) + t->len;
    *to = 0;
    n->value = v_text(text);
    n->value.len = len;
    return n;
}

static void note_implicit(struct parser *p, const char *name)
{
    if (!p->macro) return;
    if (strcmp(name, "varargs") == 0) p->macro->uses_varargs = true;
    if (strcmp(name, "kwargs") == 0) p->macro->uses_kwargs = true;
    if (strcmp(name, "caller") == 0) p->macro->uses_caller = true;
}

static struct node *name(struct parser *p)
{
    static const struct {
        const char *name;
        enum value_kind kind;
        bool b;
    } known[] = {{"true", V_BOOL, true},   {"True", V_BOOL, true},  {"false", V_BOOL, false},
                 {"False", V_BOOL, false}, {"none", V_NONE, false}, {"None", V_NONE, false}};
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        if (is_name(p->t, known[i].name))
            return constant(p, known[i].kind == V_NONE ? v_none() : v_bool(known[i].b));
    }
    struct node *n = node_new(p, N_NAME);
    if (global_is_refused(p->t->text))
        fault_raise(p->fault, ERR_UNSUPPORTED, "\"%s\" is not supported", p->t->text);
    n->name = expect_name(p);
    note_implicit(p, n->name);
    return n;
}

static struct node *list_literal(struct parser *p)
{
    struct node *n = node_new(p, N_LIST);
    expect_op(p, "[");
    while (!skip_op(p, "]")) {
        if (n->items.n) expect_op(p, ",");
        if (skip_op(p, "]")) break;
        nodes_add(p, &n->items, parse_expression(p, true));
    }
    return n;
}

static struct node *dict_literal(struct parser *p)
{
    struct node *n = node_new(p, N_DICT);
    expect_op(p, "{");
    while (!skip_op(p, "}")) {
        if (n->items.n) expect_op(p, ",");
        if (skip_op(p, "}")) break;
        nodes_add(p, &n->items, parse_expression(p, true));
        expect_op(p, ":");
        nodes_add(p, &n->items, parse_expression(p, true));
    }
    return n;
}

static struct node *parenthesized(struct parser *p)
{
    expect_op(p, "(");
    if (is_op(p->t, ")")) {
        struct node *n = node_new(p, N_TUPLE);
        next(p);
        return n;
    }
    struct node *n = parse_tuple(p, true, NULL);
    expect_op(p, ")");
    return n;
}

static struct node *primary(struct parser *p)
{
    switch (p->t->kind) {
    case T_NAME: return name(p);
    case T_TEXT: return text_literal(p);
    case T_INT: return constant(p, v_int(p->t->i));
    case T_REAL: return constant(p, v_real(p->t->d));
    default: break;
    }
    if (is_op(p->t, "(")) return parenthesized(p);
    if (is_op(p->t, "[")) return list_literal(p);
    if (is_op(p->t, "{")) return dict_literal(p);
    unexpected(p, "an expression");
}

/* ---- what follows a primary ---- */

static struct node *subscript(struct parser *p, struct node *of)
{
    struct node *n = node_new(p, N_ITEM);
    n->a = of;
    struct node *at[3] = {NULL, NULL, NULL};
    int colons = 0;
    while (!is_op(p->t, "]")) {
        if (is_op(p->t, ":") && colons < 2) {
            colons++;
            next(p);
        } else {
            if (at[colons]) break;
            at[colons] = parse_expression(p, true);
        }
    }
    if (is_op(p->t, ","))
        fault_raise(p->fault, ERR_UNSUPPORTED, "several subscripts in [] are not supported");
    if (colons == 0 && !at[0]) unexpected(p, "an expression");
    expect_op(p, "]");
    n->b = at[0];
    if (colons == 0) return n;
    n->kind = N_SLICE;
    for (int i = 0; i < 3; i++) nodes_add(p, &n->items, at[i]);
    return n;
}

static struct node *member(struct parser *p, struct node *of)
{
    struct node *n = node_new(p, N_ATTR);
    n->a = of;
    if (p->t->kind == T_INT) {
        n->kind = N_ITEM;
        n->b = constant(p, v_int(p->t->i));
        return n;
    }
    if (p->t->kind != T_NAME) unexpected(p, "a name or number");
    n->name = p->t->text;
    next(p);
    if (is_op(p->t, "(") && method_is_refused(n->name))
        fault_raise(p->fault, ERR_UNSUPPORTED, "the method %s() is not supported", n->name);
    return n;
}

void parse_call_args(struct parser *p, struct arguments *args)
{
    bool named = false, stars = false;
    expect_op(p, "(");
    for (bool first = true; !skip_op(p, ")"); first = false) {
        if (!first) expect_op(p, ",");
        if (skip_op(p, ")")) break;
        if (is_op(p->t, "*") || is_op(p->t, "**")) {
            u8 n = is_op(p->t, "*") ? 1 : 2;
            next(p);
            arguments_add(p, args, NULL, parse_expression(p, true))->stars = n;
            stars = true;
        } else if (p->t->kind == T_NAME && is_op(p->t + 1, "=")) {
            const char *key = expect_name(p);
            expect_op(p, "=");
            arguments_add(p, args, key, parse_expression(p, true));
            named = true;
        } else {
            if (named || stars) fault_raise(p->fault, ERR_INPUT, "an argument by position after one by name");
            arguments_add(p, args, NULL, parse_expression(p, true));
        }
    }
}

static struct node *call(struct parser *p, struct node *of)
{
    struct node *n = node_new(p, N_CALL);
    n->a = of;
    parse_call_args(p, &n->args);
    return n;
}

static struct node *postfix(struct parser *p, struct node *n)
{
    for (;;) {
        if (skip_op(p, ".")) {
            n = member(p, n);
        } else if (skip_op(p, "[")) {
            n = subscript(p, n);
        } else if (is_op(p->t, "(")) {
            n = call(p, n);
        } else {
            return n;
        }
    }
}

struct node *parse_filters(struct parser *p, struct node *of, bool start_inline)
{
    while (start_inline || is_op(p->t, "|")) {
        if (!start_inline) next(p);
        start_inline = false;
        struct node *n = node_new(p, N_FILTER);
        n->a = of;
        n->name = expect_name(p);
        n->function = filter_find(n->name);
        if (!n->function)
            fault_raise(p->fault, ERR_UNSUPPORTED,
                        filter_is_refused(n->name) ? "the filter \"%s\" is not supported"
                                                   : "no filter is named \"%s\"",
                        n->name);
        if (is_op(p->t, "(")) parse_call_args(p, &n->args);
        of = n;
    }
    return of;
}

static bool begins_test_argument(const struct lexeme *t)
{
    if (t->kind == T_NAME) return !is_name(t, "else") && !is_name(t, "or") && !is_name(t, "and");
    return t->kind == T_TEXT || t->kind == T_INT || t->kind == T_REAL || is_op(t, "[") || is_op(t, "{");
}

static struct node *test(struct parser *p, struct node *of)
{
    bool negated = skip_name(p, "not");
    struct node *n = node_new(p, N_TEST);
    n->a = of;
    n->name = expect_name(p);
    n->function = test_find(n->name);
    if (!n->function) fault_raise(p->fault, ERR_UNSUPPORTED, "no test is named \"%s\"", n->name);
    if (is_op(p->t, "(")) {
        parse_call_args(p, &n->args);
    } else if (begins_test_argument(p->t)) {
        if (is_name(p->t, "is")) fault_raise(p->fault, ERR_INPUT, "tests with \"is\" cannot be chained");
        arguments_add(p, &n->args, NULL, postfix(p, primary(p)));
    }
    if (!negated) return n;
    struct node *not = node_new(p, N_NOT);
    not ->a = n;
    return not ;
}

struct node *parse_unary(struct parser *p, bool with_filter)
{
    struct node *n;
    deeper(p);
    if (is_op(p->t, "-") || is_op(p->t, "+")) {
        n = node_new(p, is_op(p->t, "-") ? N_NEG : N_POS);
        next(p);
        n->a = parse_unary(p, false);
    } else {
        n = primary(p);
    }
    n = postfix(p, n);
    while (with_filter) {
        if (is_op(p->t, "|")) {
            n = parse_filters(p, n, false);
        } else if (skip_name(p, "is")) {
            n = test(p, n);
        } else if (is_op(p->t, "(")) {
            n = call(p, n);
        } else {
            break;
        }
    }
    p->depth--;
    return n;
}
