/* Parsing expressions: one function for each level of precedence, lowest first. */
#include "text/template.h"

#include <string.h>

bool is_op(const struct lexeme *t, const char *op)
{
    return t->kind == T_OP && strcmp(t->text, op) == 0;
}

bool is_name(const struct lexeme *t, const char *name)
{
    return t->kind == T_NAME && strcmp(t->text, name) == 0;
}

void next(struct parser *p)
{
    if (p->t->kind != T_END) p->t++;
    p->fault->line = p->t->line;
}

bool skip_op(struct parser *p, const char *op)
{
    if (!is_op(p->t, op)) return false;
    next(p);
    return true;
}

bool skip_name(struct parser *p, const char *name)
{
    if (!is_name(p->t, name)) return false;
    next(p);
    return true;
}

void unexpected(struct parser *p, const char *wanted)
{
    static const char *const ends[] = {[T_END] = "the end of the template",
                                       [T_PRINT_END] = "the end of the tag",
                                       [T_BLOCK_END] = "the end of the tag",
                                       [T_DATA] = "text",
                                       [T_PRINT_BEGIN] = "a tag",
                                       [T_BLOCK_BEGIN] = "a tag"};
    bool plain = p->t->kind == T_NAME || p->t->kind == T_OP || p->t->kind == T_INT || p->t->kind == T_REAL ||
                 p->t->kind == T_TEXT;
    fault_raise(p->fault, ERR_INPUT, "expected %s, got %s%.60s%s", wanted, plain ? "\"" : "",
                plain ? p->t->text : ends[p->t->kind], plain ? "\"" : "");
}

void expect_op(struct parser *p, const char *op)
{
    char wanted[16] = "\"";
    strcat(strcat(wanted, op), "\"");
    if (!skip_op(p, op)) unexpected(p, wanted);
}

const char *expect_name(struct parser *p)
{
    if (p->t->kind != T_NAME) unexpected(p, "a name");
    const char *name = p->t->text;
    next(p);
    return name;
}

void deeper(struct parser *p)
{
    enum { DEPTH = 200 };
    if (++p->depth > DEPTH) fault_raise(p->fault, ERR_UNSUPPORTED, "more than %d levels of nesting", DEPTH);
}

struct node *node_new(struct parser *p, enum node_kind kind)
{
    struct node *n = arena_alloc(p->arena, sizeof(*n));
    memset(n, 0, sizeof(*n));
    n->kind = (u8)kind;
    n->line = p->t->line;
    return n;
}

void nodes_add(struct parser *p, struct nodes *list, struct node *n)
{
    if (list->n == list->cap) {
        u32 cap = list->cap ? list->cap * 2 : 4;
        struct node **more = arena_alloc(p->arena, cap * sizeof(*more));
        if (list->n) memcpy(more, list->items, list->n * sizeof(*more));
        list->items = more;
        list->cap = cap;
    }
    list->items[list->n++] = n;
}

struct argument *arguments_add(struct parser *p, struct arguments *args, const char *name, struct node *value)
{
    if (args->n == args->cap) {
        u32 cap = args->cap ? args->cap * 2 : 4;
        struct argument *more = arena_alloc(p->arena, cap * sizeof(*more));
        if (args->n) memcpy(more, args->items, args->n * sizeof(*more));
        args->items = more;
        args->cap = cap;
    }
    args->items[args->n] = (struct argument){.name = name, .value = value};
    return &args->items[args->n++];
}

/* ---- operators ---- */

static struct node *binary_node(struct parser *p, enum op op, struct node *a, struct node *b)
{
    struct node *n = node_new(p, N_BINARY);
    n->op = (u8)op;
    n->a = a;
    n->b = b;
    return n;
}

static struct node *power(struct parser *p)
{
    struct node *n = parse_unary(p, true);
    while (skip_op(p, "**")) {
        struct node *right = parse_unary(p, true);
        /* Jinja's own answer depends on what it folds: -2 ** x is -(2 ** x), -2 ** 2 is 4 */
        if (n->kind == N_NEG && right->kind != N_CONST)
            fault_raise(p->fault, ERR_UNSUPPORTED, "a power of a negated value is not supported");
        n = binary_node(p, OP_POW, n, right);
    }
    return n;
}

static int factor_op(struct parser *p)
{
    static const struct {
        const char *text;
        enum op op;
    } ops[] = {{"*", OP_MUL}, {"/", OP_DIV}, {"//", OP_FLOOR}, {"%", OP_MOD}};
    for (size_t i = 0; i < COUNT_OF(ops); i++) {
        if (skip_op(p, ops[i].text)) return (int)ops[i].op;
    }
    return -1;
}

static struct node *product(struct parser *p)
{
    struct node *n = power(p);
    for (int op; (op = factor_op(p)) >= 0;) n = binary_node(p, (enum op)op, n, power(p));
    return n;
}

static struct node *concat(struct parser *p)
{
    struct node *first = product(p);
    if (!is_op(p->t, "~")) return first;
    struct node *n = node_new(p, N_CONCAT);
    nodes_add(p, &n->items, first);
    while (skip_op(p, "~")) nodes_add(p, &n->items, product(p));
    return n;
}

static struct node *sum(struct parser *p)
{
    struct node *n = concat(p);
    while (is_op(p->t, "+") || is_op(p->t, "-")) {
        enum op op = is_op(p->t, "+") ? OP_ADD : OP_SUB;
        next(p);
        n = binary_node(p, op, n, concat(p));
    }
    return n;
}

static int comparison(struct parser *p)
{
    static const char *const ops[] = {
        [OP_EQ] = "==", [OP_NE] = "!=", [OP_LT] = "<", [OP_LE] = "<=", [OP_GT] = ">", [OP_GE] = ">="};
    for (int op = OP_EQ; op <= OP_GE; op++) {
        if (skip_op(p, ops[op])) return op;
    }
    if (skip_name(p, "in")) return OP_IN;
    if (!is_name(p->t, "not") || !is_name(p->t + 1, "in")) return -1;
    next(p);
    next(p);
    return OP_NOT_IN;
}

static struct node *compared(struct parser *p)
{
    struct node *first = sum(p), *n = NULL;
    u8 ops[64];
    u32 n_ops = 0;
    for (int op; (op = comparison(p)) >= 0;) {
        if (n_ops == COUNT_OF(ops))
            fault_raise(p->fault, ERR_UNSUPPORTED, "a chain of more than 64 comparisons");
        if (!n) {
            n = node_new(p, N_COMPARE);
            nodes_add(p, &n->items, first);
        }
        ops[n_ops++] = (u8)op;
        nodes_add(p, &n->items, sum(p));
    }
    if (!n) return first;
    n->ops = memcpy(arena_alloc(p->arena, n_ops), ops, n_ops);
    return n;
}

static struct node *negation(struct parser *p)
{
    if (!is_name(p->t, "not")) return compared(p);
    struct node *n = node_new(p, N_NOT);
    next(p);
    deeper(p);
    n->a = negation(p);
    p->depth--;
    return n;
}

static struct node *conjunction(struct parser *p)
{
    struct node *n = negation(p);
    while (skip_name(p, "and")) {
        struct node *and = node_new(p, N_AND);
        and->a = n;
        and->b = negation(p);
        n = and;
    }
    return n;
}

static struct node *disjunction(struct parser *p)
{
    struct node *n = conjunction(p);
    while (skip_name(p, "or")) {
        struct node * or = node_new(p, N_OR);
        or->a = n;
        or->b = conjunction(p);
        n = or ;
    }
    return n;
}

struct node *parse_expression(struct parser *p, bool with_condition)
{
    deeper(p);
    struct node *n = disjunction(p);
    while (with_condition && skip_name(p, "if")) {
        struct node *cond = node_new(p, N_COND);
        cond->a = n;
        cond->b = disjunction(p);
        cond->c = skip_name(p, "else") ? parse_expression(p, true) : NULL;
        n = cond;
    }
    p->depth--;
    return n;
}

static bool ends_tuple(const struct parser *p, const char *end_name)
{
    return p->t->kind == T_PRINT_END || p->t->kind == T_BLOCK_END || is_op(p->t, ")") ||
           (end_name && is_name(p->t, end_name));
}

struct node *parse_tuple(struct parser *p, bool with_condition, const char *end_name)
{
    if (ends_tuple(p, end_name)) unexpected(p, "an expression");
    struct node *first = parse_expression(p, with_condition), *n = NULL;
    while (skip_op(p, ",")) {
        if (!n) {
            n = node_new(p, N_TUPLE);
            nodes_add(p, &n->items, first);
        }
        if (ends_tuple(p, end_name)) break;
        nodes_add(p, &n->items, parse_expression(p, with_condition));
    }
    return n ? n : first;
}
