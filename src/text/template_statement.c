/* Parsing statements: a table of tags, one function each. */
#include "text/template.h"

#include <string.h>

/* Reads nodes until a tag begins with one of the words (a list ended by NULL), and skips that word. The index of the word;
 * -1 at the end of the template, which only the outermost level allows. */
static int body(struct parser *p, struct nodes *to, const char *const *ends);

static void expect_block_end(struct parser *p)
{
    if (p->t->kind != T_BLOCK_END) unexpected(p, "the end of the tag");
    p->t++;
    p->fault->line = p->t->line;
}

static void target_name(struct parser *p, struct node *n)
{
    static const char *const reserved[] = {"true", "false", "none", "True", "False", "None"};
    for (size_t i = 0; i < COUNT_OF(reserved); i++) {
        if (is_name(p->t, reserved[i]))
            fault_raise(p->fault, ERR_INPUT, "cannot assign to \"%s\"", reserved[i]);
    }
    n->name = expect_name(p);
}

static struct node *target_item(struct parser *p, bool with_namespace)
{
    struct node *n = node_new(p, N_NAME);
    if (skip_op(p, "(")) {
        deeper(p);
        n = parse_target(p, false);
        p->depth--;
        expect_op(p, ")");
        return n;
    }
    target_name(p, n);
    if (!with_namespace || !skip_op(p, ".")) return n;
    struct node *attr = node_new(p, N_ATTR);
    attr->a = n;
    attr->name = expect_name(p);
    return attr;
}

struct node *parse_target(struct parser *p, bool with_namespace)
{
    struct node *first = target_item(p, with_namespace), *n = NULL;
    while (skip_op(p, ",")) {
        if (!n) {
            n = node_new(p, N_TUPLE);
            nodes_add(p, &n->items, first);
        }
        if (p->t->kind != T_NAME && !is_op(p->t, "(")) break;
        if (is_name(p->t, "in")) break;
        nodes_add(p, &n->items, target_item(p, false));
    }
    return n ? n : first;
}

static struct node *parse_for(struct parser *p)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    struct node *n = node_new(p, S_FOR);
    n->target = parse_target(p, false);
    if (!skip_name(p, "in")) unexpected(p, "\"in\"");
    n->a = parse_tuple(p, false, "recursive");
    if (skip_name(p, "if")) n->b = parse_expression(p, true);
    n->recursive = skip_name(p, "recursive");
    expect_block_end(p);
    p->loops++;
    int end = body(p, &n->body, ends);
    p->loops--;
    if (end == 0) return n;
    expect_block_end(p);
    body(p, &n->else_body, (const char *const[]){"endfor", NULL});
    return n;
}

static struct node *parse_if(struct parser *p)
{
    static const char *const ends[] = {"endif", "else", "elif", NULL};
    struct node *n = node_new(p, S_IF);
    deeper(p);
    n->a = parse_tuple(p, false, NULL);
    expect_block_end(p);
    int end = body(p, &n->body, ends);
    if (end == 1) {
        expect_block_end(p);
        body(p, &n->else_body, (const char *const[]){"endif", NULL});
    } else if (end == 2) {
        nodes_add(p, &n->else_body, parse_if(p));
    }
    p->depth--;
    return n;
}

static struct node *parse_set(struct parser *p)
{
    struct node *n = node_new(p, S_SET);
    n->target = parse_target(p, true);
    if (skip_op(p, "=")) {
        n->a = parse_tuple(p, true, NULL);
        return n;
    }
    n->kind = S_SET_BLOCK;
    n->a = parse_filters(p, NULL, false);
    expect_block_end(p);
    body(p, &n->body, (const char *const[]){"endset", NULL});
    return n;
}

/* (a, b=1): parameters of a macro or caller. */
static void parameters(struct parser *p, struct arguments *params)
{
    expect_op(p, "(");
    for (bool first = true; !skip_op(p, ")"); first = false) {
        if (!first) expect_op(p, ",");
        struct node n;
        target_name(p, &n);
        for (u32 i = 0; i < params->n; i++) {
            if (strcmp(params->items[i].name, n.name) == 0)
                fault_raise(p->fault, ERR_INPUT, "two parameters are named \"%s\"", n.name);
        }
        bool has_default = skip_op(p, "=");
        if (!has_default && params->n && params->items[params->n - 1].value)
            fault_raise(p->fault, ERR_INPUT, "the parameter \"%s\" needs a default", n.name);
        arguments_add(p, params, n.name, has_default ? parse_expression(p, true) : NULL);
    }
}

/* The inside of a macro is a function of its own: no loop is around it. */
static void function_body(struct parser *p, struct node *n, const char *end)
{
    struct node *outer = p->macro;
    int loops = p->loops;
    p->macro = n;
    p->loops = 0;
    expect_block_end(p);
    body(p, &n->body, (const char *const[]){end, NULL});
    p->loops = loops;
    p->macro = outer;
    if (!outer) return; /* what an inner one uses may be meant for the outer one */
    outer->uses_varargs |= n->uses_varargs;
    outer->uses_kwargs |= n->uses_kwargs;
    outer->uses_caller |= n->uses_caller;
}

static struct node *parse_macro(struct parser *p)
{
    struct node *n = node_new(p, S_MACRO);
    target_name(p, n);
    parameters(p, &n->args);
    function_body(p, n, "endmacro");
    return n;
}

static struct node *parse_call(struct parser *p)
{
    struct node *n = node_new(p, S_CALL);
    n->name = "caller";
    if (is_op(p->t, "(")) parameters(p, &n->args);
    n->a = parse_expression(p, true);
    if (n->a->kind != N_CALL) fault_raise(p->fault, ERR_INPUT, "a call block needs a call");
    function_body(p, n, "endcall");
    return n;
}

static struct node *parse_filter(struct parser *p)
{
    struct node *n = node_new(p, S_FILTER);
    n->a = parse_filters(p, NULL, true);
    expect_block_end(p);
    body(p, &n->body, (const char *const[]){"endfilter", NULL});
    return n;
}

static struct node *parse_with(struct parser *p)
{
    struct node *n = node_new(p, S_WITH);
    for (bool first = true; p->t->kind != T_BLOCK_END; first = false) {
        if (!first) expect_op(p, ",");
        struct node *name = node_new(p, N_NAME);
        target_name(p, name);
        expect_op(p, "=");
        arguments_add(p, &n->args, name->name, parse_expression(p, true));
    }
    expect_block_end(p);
    body(p, &n->body, (const char *const[]){"endwith", NULL});
    return n;
}

static struct node *parse_generation(struct parser *p)
{
    struct node *n = node_new(p, S_SCOPE);
    int loops = p->loops;
    expect_block_end(p);
    p->loops = 0;
    body(p, &n->body, (const char *const[]){"endgeneration", NULL});
    p->loops = loops;
    return n;
}

static struct node *leave_loop(struct parser *p, enum node_kind kind)
{
    if (p->loops == 0) fault_raise(p->fault, ERR_INPUT, "\"break\" or \"continue\" outside of a loop");
    return node_new(p, kind);
}

static struct node *parse_break(struct parser *p)
{
    return leave_loop(p, S_BREAK);
}

static struct node *parse_continue(struct parser *p)
{
    return leave_loop(p, S_CONTINUE);
}

static struct node *parse_autoescape(struct parser *p)
{
    struct node *n = node_new(p, S_ESCAPE);
    n->a = parse_expression(p, true);
    expect_block_end(p);
    body(p, &n->body, (const char *const[]){"endautoescape", NULL});
    return n;
}

/* Nothing extends a chat template: a block is shown where it stands. */
static struct node *parse_block(struct parser *p)
{
    struct node *n = node_new(p, S_BLOCK);
    int loops = p->loops;
    n->name = expect_name(p);
    n->recursive = skip_name(p, "scoped");
    if (is_name(p->t, "required"))
        fault_raise(p->fault, ERR_UNSUPPORTED, "required blocks are not supported");
    expect_block_end(p);
    p->loops = 0;
    body(p, &n->body, (const char *const[]){"endblock", NULL});
    p->loops = loops;
    if (p->t->kind == T_NAME && !skip_name(p, n->name)) unexpected(p, "the block's name");
    return n;
}

static struct node *parse_print(struct parser *p)
{
    struct node *n = node_new(p, S_PRINT);
    n->a = node_new(p, N_CONCAT);
    do nodes_add(p, &n->a->items, parse_expression(p, true));
    while (skip_op(p, ","));
    return n;
}

/* include, import, from, extends: there is nothing to load from, which transformers too says only when it gets there. */
static struct node *parse_loader(struct parser *p)
{
    struct node *n = node_new(p, S_LOADER);
    parse_expression(p, true);
    while (p->t->kind == T_NAME || is_op(p->t, ",")) next(p);
    return n;
}

struct tag {
    const char *name;
    struct node *(*parse)(struct parser *p);
};
static const struct tag tags[] = {
    {"for", parse_for},
    {"if", parse_if},
    {"set", parse_set},
    {"macro", parse_macro},
    {"call", parse_call},
    {"filter", parse_filter},
    {"with", parse_with},
    {"break", parse_break},
    {"continue", parse_continue},
    {"block", parse_block},
    {"extends", parse_loader},
    {"include", parse_loader},
    {"import", parse_loader},
    {"from", parse_loader},
    {"autoescape", parse_autoescape},
    {"print", parse_print},
    {"generation", parse_generation},
};

static struct node *statement(struct parser *p)
{
    if (p->t->kind != T_NAME) unexpected(p, "a tag's name");
    for (size_t i = 0; i < COUNT_OF(tags); i++) {
        if (!skip_name(p, tags[i].name)) continue;
        deeper(p);
        struct node *n = tags[i].parse(p);
        p->depth--;
        return n;
    }
    fault_raise(p->fault, ERR_INPUT, "\"%s\" is no tag, or not one that can stand here", p->t->text);
}

static struct node *print(struct parser *p)
{
    struct node *n = node_new(p, S_PRINT);
    n->a = parse_tuple(p, true, NULL);
    if (p->t->kind != T_PRINT_END) unexpected(p, "the end of the tag");
    p->t++;
    return n;
}

static int end_word(struct parser *p, const char *const *ends)
{
    for (int i = 0; ends && ends[i]; i++) {
        if (skip_name(p, ends[i])) return i;
    }
    return -1;
}

static int body(struct parser *p, struct nodes *to, const char *const *ends)
{
    for (;;) {
        p->fault->line = p->t->line;
        if (p->t->kind == T_END) {
            if (ends) fault_raise(p->fault, ERR_INPUT, "the template ends before \"%s\"", ends[0]);
            return -1;
        }
        if (p->t->kind == T_DATA) {
            struct node *n = node_new(p, S_DATA);
            n->value = v_text(p->t->text);
            n->value.len = p->t->len;
            nodes_add(p, to, n);
            p->t++;
        } else if (p->t->kind == T_PRINT_BEGIN) {
            p->t++;
            nodes_add(p, to, print(p));
        } else {
            p->t++; /* T_BLOCK_BEGIN */
            int end = end_word(p, ends);
            if (end >= 0) return end;
            nodes_add(p, to, statement(p));
            expect_block_end(p);
        }
    }
}

struct nodes parse_template(struct parser *p)
{
    struct nodes all = {0};
    body(p, &all, NULL);
    return all;
}
