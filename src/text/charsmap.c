/* SentencePiece's precompiled character map, as the "Precompiled" normalizer of tokenizer.json has it.
 *
 * In base64: the number of bytes of a trie, the trie, then texts with a NUL behind each. The trie is a double array of 32-bit words
 * (darts-clone): a node's children lie at its place xor its offset xor their byte, and say that byte; a child by NUL is a value, here
 * where in the texts a replacement begins. The file is input: what would lead out of the array or the texts is an error.
 *
 * What is replaced are grapheme clusters of less than 6 bytes, as wholes, by the replacement of the shortest key that they begin with,
 * and characters. This is what HF tokenizers do; it is not what SentencePiece does. */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { CLUSTER_MOST = 6, NO_KEY = -1, DAMAGED = -2 };

struct charsmap {
    u8 *bytes;
    const u8 *trie; /* u32[n_units], little-endian */
    u32 n_units;
    const char *texts;
    size_t texts_len;
    bool plain[128]; /* ASCII characters that no key begins with: they stay, wherever no mark follows */
};

/* ---- base64 */
static int digit(u8 c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* The bytes, malloc'd; NULL: not base64. */
static u8 *decode64(const char *text, size_t len, size_t *out_len)
{
    u8 *out = mem_alloc(len / 4 * 3 + 1);
    size_t n = 0;
    bool good = len % 4 == 0;
    for (size_t i = 0; good && i < len; i += 4) {
        u32 bits = 0, pads = 0;
        for (size_t k = 0; k < 4; k++) {
            bool pad = text[i + k] == '=' && i + 4 == len && k >= 2;
            int d = pad ? 0 : digit((u8)text[i + k]);
            good = good && d >= 0 && (pad || !pads);
            pads += pad;
            bits = bits << 6 | (u32)d % 64;
        }
        for (u32 k = 0; k < 3 - pads; k++) out[n++] = (u8)(bits >> (16 - 8 * k));
    }
    *out_len = n;
    if (good) return out;
    free(out);
    return NULL;
}

/* ---- the trie */
static u32 read_u32(const u8 *p)
{
    return (u32)p[0] | (u32)p[1] << 8 | (u32)p[2] << 16 | (u32)p[3] << 24;
}

static u32 unit_at(const struct charsmap *m, u32 i)
{
    return read_u32(m->trie + (size_t)i * 4);
}

/* From a node to where its children lie. */
static u32 unit_offset(u32 unit)
{
    return unit >> 10 << ((unit & 1u << 9) >> 6);
}

/* Where the replacement of the shortest key that text begins with is; NO_KEY, DAMAGED. */
static i64 find(const struct charsmap *m, const char *text, size_t len)
{
    u32 node = unit_offset(unit_at(m, 0));
    for (size_t i = 0; i < len && text[i]; i++) {
        u8 c = (u8)text[i];
        node ^= c;
        if (node >= m->n_units) return DAMAGED;
        u32 unit = unit_at(m, node);
        if ((unit & (1u << 31 | 0xff)) != c) return NO_KEY;
        node ^= unit_offset(unit);
        if (!(unit >> 8 & 1)) continue;
        if (node >= m->n_units) return DAMAGED;
        u32 at = unit_at(m, node) & ~(1u << 31);
        return at < m->texts_len && ((u8)m->texts[at] & 0xC0) != 0x80 ? (i64)at : DAMAGED;
    }
    return NO_KEY;
}

/* ---- reading */
static void mark_plain(struct charsmap *m)
{
    for (int c = 1; c < 128; c++) {
        u32 node = unit_offset(unit_at(m, 0)) ^ (u32)c;
        m->plain[c] = node < m->n_units && (unit_at(m, node) & (1u << 31 | 0xff)) != (u32)c;
    }
}

struct charsmap *charsmap_read(const char *text, size_t len, struct error *err)
{
    static const char *const field = "normalizer.precompiled_charsmap";
    struct charsmap *m = mem_zero(1, sizeof(*m));
    size_t n = 0;
    m->bytes = decode64(text, len, &n);
    u32 size = m->bytes && n >= 4 ? read_u32(m->bytes) : 0;
    if (!m->bytes) {
        field_error(err, ERR_INPUT, field, "is not base64");
    } else if (size < 4 || size % 4 || size > n - 4) {
        field_error(err, ERR_INPUT, field, "has %zu bytes, and a trie of %u", n, size);
    } else {
        m->trie = m->bytes + 4;
        m->n_units = size / 4;
        m->texts = (const char *)m->trie + size;
        m->texts_len = n - 4 - size;
        if (utf8_valid(m->texts, m->texts_len) == m->texts_len) {
            mark_plain(m);
            return m;
        }
        field_error(err, ERR_INPUT, field, "has a replacement that is not UTF-8");
    }
    charsmap_free(m);
    return NULL;
}

void charsmap_free(struct charsmap *m)
{
    if (!m) return;
    free(m->bytes);
    free(m);
}

/* ---- replacing */
/* 1: replaced; 0: there is nothing to replace. */
static int replace(const struct charsmap *m, const char *text, size_t len, struct buf *out)
{
    i64 at = find(m, text, len);
    if (at < 0) return at == NO_KEY ? 0 : ERR_INPUT;
    buf_add(out, m->texts + at, strnlen(m->texts + at, m->texts_len - (size_t)at));
    return 1;
}

static int replace_cluster(const struct charsmap *m, const char *text, size_t len, struct buf *out)
{
    int rc = len < CLUSTER_MOST ? replace(m, text, len, out) : 0;
    if (rc) return MIN_OF(rc, 0);
    for (size_t i = 0; i < len && rc >= 0;) {
        size_t n = (size_t)utf8_width(text + i);
        rc = replace(m, text + i, n, out);
        if (rc == 0) buf_add(out, text + i, n);
        i += n;
    }
    return MIN_OF(rc, 0);
}

/* Bytes of the grapheme cluster that text begins with. */
static size_t cluster_len(const char *text, size_t len)
{
    int n;
    utf8proc_int32_t state = 0, before = (utf8proc_int32_t)utf8_at(text, &n);
    size_t at = (size_t)n;
    while (at < len) {
        utf8proc_int32_t cp = (utf8proc_int32_t)utf8_at(text + at, &n);
        if (utf8proc_grapheme_break_stateful(before, cp, &state)) break;
        before = cp;
        at += (size_t)n;
    }
    return at;
}

int charsmap_run(const struct charsmap *m, const char *text, size_t len, struct buf *out, struct error *err)
{
    for (size_t at = 0, n; at < len; at += n) {
        u8 c = (u8)text[at];
        bool alone = c < 128 && m->plain[c] && (at + 1 == len || (u8)text[at + 1] < 128);
        n = alone ? 1 : cluster_len(text + at, len - at);
        if (alone)
            buf_char(out, (char)c);
        else if (replace_cluster(m, text + at, n, out) < 0)
            return field_error(err, ERR_INPUT, "normalizer.precompiled_charsmap",
                               "is damaged: it leads out of its own bytes");
    }
    return 0;
}
