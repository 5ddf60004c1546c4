/* Methods of texts. */
#include "text/template.h"
#include "text/utf8.h"

#include <string.h>
#include <utf8proc.h>

#define METHOD(name)                                                                                         \
    static struct value name(struct render *r, struct value in, const struct call *call,                     \
                             const struct value *arg)
#define UNUSED (void)r, (void)in, (void)call, (void)arg

static struct value need_text(struct render *r, struct value v)
{
    if (v.kind == V_UNDEFINED) raise_error(r, "%s", v.text);
    if (v.kind != V_TEXT) raise_error(r, "must be str, not %s", type_name(v));
    return v;
}

static const struct value *chars_of(struct render *r, const struct value *arg)
{
    if (arg->kind == V_ABSENT || arg->kind == V_NONE) return NULL;
    need_text(r, *arg);
    return arg;
}

static i64 int_or(struct render *r, struct value v, i64 otherwise)
{
    i64 i;
    if (v.kind == V_ABSENT) return otherwise;
    if (!as_int(v, &i)) raise_error(r, "'%s' object cannot be interpreted as an integer", type_name(v));
    return i;
}

/* ---- case and white space ---- */

METHOD(upper)
{
    UNUSED;
    return text_upper(r, in);
}

METHOD(lower)
{
    UNUSED;
    return text_lower(r, in);
}

METHOD(title)
{
    UNUSED;
    return text_title(r, in, false);
}

METHOD(capitalize)
{
    UNUSED;
    return text_capitalize(r, in);
}

METHOD(strip)
{
    UNUSED;
    return text_strip(r, in, chars_of(r, &arg[0]), true, true);
}

METHOD(lstrip)
{
    UNUSED;
    return text_strip(r, in, chars_of(r, &arg[0]), true, false);
}

METHOD(rstrip)
{
    UNUSED;
    return text_strip(r, in, chars_of(r, &arg[0]), false, true);
}

/* ---- cutting ---- */

static const char *find_last(struct value in, size_t end, struct value what)
{
    for (size_t at = end + 1; what.len <= end && at-- > what.len;) {
        if (memcmp(in.text + at - what.len, what.text, what.len) == 0) return in.text + at - what.len;
    }
    return NULL;
}

static void reverse_list(struct list *l)
{
    for (u32 i = 0; i < l->n / 2; i++) {
        struct value v = l->items[i];
        l->items[i] = l->items[l->n - 1 - i];
        l->items[l->n - 1 - i] = v;
    }
}

/* At runs of white space: nothing empty comes out. */
static struct list *split_space(struct render *r, struct value in, i64 max, bool from_right)
{
    struct list *l = list_new(r, 0);
    struct value rest = text_strip(r, in, NULL, !from_right, from_right);
    while (rest.len && max != 0) {
        size_t from = 0, to = 0;
        int n;
        if (from_right) {
            for (from = to = rest.len; from > 0; from -= (size_t)n) {
                n = utf8_last(rest.text, from);
                if (is_py_space(utf8_at(rest.text + from - n, &n))) break;
            }
            list_add(r, l, part(rest, from, to - from));
            rest = text_strip(r, part(rest, 0, from), NULL, false, true);
        } else {
            while (to < rest.len && !is_py_space(utf8_at(rest.text + to, &n))) to += (size_t)n;
            list_add(r, l, part(rest, 0, to));
            rest = text_strip(r, part(rest, to, rest.len - to), NULL, true, false);
        }
        max--;
    }
    /* the part that is not split keeps the white space of its outer side */
    if (rest.len) list_add(r, l, rest);
    if (from_right) reverse_list(l);
    return l;
}

static struct list *split_at(struct render *r, struct value in, struct value by, i64 max, bool from_right)
{
    struct list *l = list_new(r, 0);
    size_t at = 0, end = in.len;
    const char *hit;
    if (by.len == 0) raise_error(r, "empty separator");
    for (; max != 0; max--) {
        spend(r, 1);
        hit = from_right ? find_last(part(in, 0, end), end, by) : find_text(in, at, by);
        if (!hit) break;
        size_t from = (size_t)(hit - in.text);
        list_add(r, l, from_right ? part(in, from + by.len, end - from - by.len) : part(in, at, from - at));
        if (from_right) {
            end = from;
        } else {
            at = from + by.len;
        }
    }
    list_add(r, l, part(in, at, end - at));
    if (from_right) reverse_list(l);
    return l;
}

static struct value split_any(struct render *r, struct value in, const struct value *arg, bool from_right)
{
    i64 max = int_or(r, arg[1], -1);
    const struct value *by = chars_of(r, &arg[0]);
    spend(r, 1 + in.len / 16);
    return v_list(V_LIST, by ? split_at(r, in, *by, max, from_right) : split_space(r, in, max, from_right));
}

METHOD(split)
{
    UNUSED;
    return split_any(r, in, arg, false);
}

METHOD(rsplit)
{
    UNUSED;
    return split_any(r, in, arg, true);
}

METHOD(splitlines)
{
    UNUSED;
    struct list *l = list_new(r, 0);
    bool keep = is_true(arg[0]);
    for (size_t at = 0, from = 0; at < in.len;) {
        int n;
        u32 cp = utf8_at(in.text + at, &n);
        size_t end = at;
        at += (size_t)n;
        bool breaks = (cp >= 10 && cp <= 13) || (cp >= 0x1C && cp <= 0x1E) || cp == 0x85 || cp == 0x2028 ||
                      cp == 0x2029;
        if (cp == '\r' && at < in.len && in.text[at] == '\n') at++;
        if (!breaks && at < in.len) continue;
        if (!breaks) end = at;
        list_add(r, l, part(in, from, (keep ? at : end) - from));
        from = at;
    }
    return v_list(V_LIST, l);
}

static struct value three(struct render *r, struct value a, struct value b, struct value c)
{
    struct list *l = list_new(r, 3);
    list_add(r, l, a);
    list_add(r, l, b);
    list_add(r, l, c);
    return v_list(V_TUPLE, l);
}

static struct value partition_any(struct render *r, struct value in, struct value by, bool last)
{
    if (need_text(r, by).len == 0) raise_error(r, "empty separator");
    spend(r, 1 + in.len / 16);
    const char *hit = last ? find_last(in, in.len, by) : find_text(in, 0, by);
    struct value none = v_text("");
    if (!hit) return last ? three(r, none, none, in) : three(r, in, none, none);
    size_t at = (size_t)(hit - in.text), end = at + by.len;
    return three(r, part(in, 0, at), part(in, at, by.len), part(in, end, in.len - end));
}

METHOD(partition)
{
    UNUSED;
    return partition_any(r, in, arg[0], false);
}

METHOD(rpartition)
{
    UNUSED;
    return partition_any(r, in, arg[0], true);
}

/* ---- searching ---- */

/* The part of the text that start and end (characters, as in a slice) leave; *before: characters cut off in front. */
static struct value window(struct render *r, struct value in, const struct value *arg, i64 *before)
{
    i64 n = count_chars(in), start = arg[0].kind == V_NONE ? 0 : int_or(r, arg[0], 0);
    i64 end = arg[1].kind == V_NONE ? n : int_or(r, arg[1], n);
    spend(r, 1 + in.len / 16);
    if (start < 0) start = MAX_OF(start + n, (i64)0);
    if (end < 0) end = MAX_OF(end + n, (i64)0);
    end = MIN_OF(end, n);
    *before = start;
    if (start > end) return (struct value){.kind = V_ABSENT};
    size_t from = char_offset(in, start);
    return part(in, from, char_offset(in, end) - from);
}

static bool has_affix(struct render *r, struct value in, struct value what, bool at_end)
{
    if (what.kind == V_TUPLE) {
        for (u32 i = 0; i < what.list->n; i++) {
            if (has_affix(r, in, need_text(r, what.list->items[i]), at_end)) return true;
        }
        return false;
    }
    need_text(r, what);
    return what.len <= in.len && memcmp(in.text + (at_end ? in.len - what.len : 0), what.text, what.len) == 0;
}

static struct value affix(struct render *r, struct value in, const struct value *arg, bool at_end)
{
    i64 before;
    struct value v =
        arg[1].kind == V_ABSENT && arg[2].kind == V_ABSENT ? in : window(r, in, arg + 1, &before);
    if (arg[0].kind != V_TUPLE) need_text(r, arg[0]);
    return v_bool(v.kind == V_TEXT && has_affix(r, v, arg[0], at_end));
}

METHOD(startswith)
{
    UNUSED;
    return affix(r, in, arg, false);
}

METHOD(endswith)
{
    UNUSED;
    return affix(r, in, arg, true);
}

static i64 position(struct render *r, struct value in, const struct value *arg, bool last)
{
    i64 before;
    struct value what = need_text(r, arg[0]), v = window(r, in, arg + 1, &before);
    if (v.kind == V_ABSENT) return -1;
    const char *hit = last ? find_last(v, v.len, what) : find_text(v, 0, what);
    return hit ? before + count_chars(part(v, 0, (size_t)(hit - v.text))) : -1;
}

METHOD(find)
{
    UNUSED;
    return v_int(position(r, in, arg, false));
}

METHOD(rfind)
{
    UNUSED;
    return v_int(position(r, in, arg, true));
}

METHOD(text_index)
{
    UNUSED;
    i64 at = position(r, in, arg, false);
    if (at < 0) raise_error(r, "substring not found");
    return v_int(at);
}

METHOD(text_count)
{
    UNUSED;
    i64 before, n = 0;
    struct value what = need_text(r, arg[0]), v = window(r, in, arg + 1, &before);
    if (v.kind == V_ABSENT) return v_int(0);
    if (what.len == 0) return v_int(count_chars(v) + 1);
    for (const char *hit = v.text; (hit = find_text(v, (size_t)(hit - v.text), what)); hit += what.len) n++;
    return v_int(n);
}

/* ---- changing ---- */

METHOD(replace)
{
    UNUSED;
    if (in.safe) raise_unsupported(r, "replace() of a safe text");
    return text_replace(r, in, need_text(r, arg[0]), need_text(r, arg[1]), int_or(r, arg[2], -1));
}

METHOD(text_join)
{
    UNUSED;
    struct writer w = {0};
    const struct list *l = walk(r, arg[0]);
    if (in.safe) raise_unsupported(r, "join() of a safe text");
    for (u32 i = 0; i < l->n; i++) {
        if (l->items[i].kind != V_TEXT)
            raise_error(r, "sequence item %u: expected str instance, %s found", i, type_name(l->items[i]));
        if (i) write_part(r, &w, in, 0, in.len);
        write_part(r, &w, l->items[i], 0, l->items[i].len);
    }
    return written(r, &w);
}

METHOD(removeprefix)
{
    UNUSED;
    struct value what = need_text(r, arg[0]);
    return has_affix(r, in, what, false) ? part(in, what.len, in.len - what.len) : in;
}

METHOD(removesuffix)
{
    UNUSED;
    struct value what = need_text(r, arg[0]);
    return has_affix(r, in, what, true) ? part(in, 0, in.len - what.len) : in;
}

/* ---- kinds of characters ---- */

static struct value all_chars(struct value in, bool (*is)(u32 cp))
{
    bool all = in.len > 0;
    for (size_t at = 0; all && at < in.len;) {
        int n;
        all = is(utf8_at(in.text + at, &n));
        at += (size_t)n;
    }
    return v_bool(all);
}

static bool is_alpha(u32 cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

METHOD(all_alpha)
{
    UNUSED;
    return all_chars(in, is_alpha);
}

METHOD(all_space)
{
    UNUSED;
    return all_chars(in, is_py_space);
}

METHOD(all_upper)
{
    UNUSED;
    return v_bool(text_is_case(in, true));
}

METHOD(all_lower)
{
    UNUSED;
    return v_bool(text_is_case(in, false));
}

static bool is_digit(u32 cp)
{
    return (cp >= '0' && cp <= '9') || utf8proc_category((utf8proc_int32_t)cp) == UTF8PROC_CATEGORY_ND;
}

/* Superscripts and circled digits are digits for Python too; which ones, no category says. */
METHOD(all_digit)
{
    UNUSED;
    for (size_t at = 0; at < in.len;) {
        int n;
        u32 cp = utf8_at(in.text + at, &n);
        if (utf8proc_category((utf8proc_int32_t)cp) == UTF8PROC_CATEGORY_NO)
            raise_unsupported(r, "isdigit() of superscripts and circled digits");
        at += (size_t)n;
    }
    return all_chars(in, is_digit);
}

const struct function text_methods[] = {
    {"capitalize", capitalize, "", 0},
    {"count", text_count, "sub,start,end", 1},
    {"endswith", endswith, "suffix,start,end", 1},
    {"find", find, "sub,start,end", 1},
    {"index", text_index, "sub,start,end", 1},
    {"isalpha", all_alpha, "", 0},
    {"isdigit", all_digit, "", 0},
    {"islower", all_lower, "", 0},
    {"isspace", all_space, "", 0},
    {"isupper", all_upper, "", 0},
    {"join", text_join, "iterable", 1},
    {"lower", lower, "", 0},
    {"lstrip", lstrip, "chars", 0},
    {"partition", partition, "sep", 1},
    {"removeprefix", removeprefix, "prefix", 1},
    {"removesuffix", removesuffix, "suffix", 1},
    {"replace", replace, "old,new,count", 2},
    {"rfind", rfind, "sub,start,end", 1},
    {"rpartition", rpartition, "sep", 1},
    {"rsplit", rsplit, "sep,maxsplit", 0},
    {"rstrip", rstrip, "chars", 0},
    {"split", split, "sep,maxsplit", 0},
    {"splitlines", splitlines, "keepends", 0},
    {"startswith", startswith, "prefix,start,end", 1},
    {"strip", strip, "chars", 0},
    {"title", title, "", 0},
    {"upper", upper, "", 0},
    {NULL, NULL, NULL, 0},
};
