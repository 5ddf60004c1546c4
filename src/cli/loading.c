/* How far the engines are with their weights, from what they write into the log. */
#include "cli/up.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const u64 line_every_ns = 10 * NS_PER_S;

void loading_init(struct loading *l, bool terminal)
{
    memset(l, 0, sizeof(*l));
    l->terminal = terminal;
}

void loading_release(struct loading *l)
{
    loading_hide(l);
    free(l->engines);
}

static struct loading_engine *find(struct loading *l, const char *name, size_t len)
{
    u64 id = hash_bytes(name, len, 0);
    for (size_t i = 0; i < l->n; i++)
        if (l->engines[i].id == id) return &l->engines[i];
    l->engines = mem_resize(l->engines, (l->n + 1) * sizeof(*l->engines));
    l->engines[l->n] = (struct loading_engine){.id = id};
    return &l->engines[l->n++];
}

void loading_note(struct loading *l, const char *line)
{
    static const char words[] = ": loading weights: ";
    const char *at = strstr(line, words);
    unsigned long long done, of;
    double speed;
    if (!at || sscanf(at + sizeof(words) - 1, "%llu of %llu MB, %lf GB/s", &done, &of, &speed) != 3) return;
    enum { TIME_LEN = 13 }; /* each line begins with one */
    const char *name = at - line > TIME_LEN ? line + TIME_LEN : line;
    struct loading_engine *e = find(l, name, (size_t)(at - name));
    e->done = MIN_OF(done, of);
    e->of = of;
    e->speed = done < of ? speed : 0;
    l->changed = true;
}

/* Text without a line's end. */
static void describe(const struct loading *l, char *out, size_t size)
{
    enum { CELLS = 30 };
    u64 done = 0, of = 0;
    double speed = 0;
    for (size_t i = 0; i < l->n; i++) {
        done += l->engines[i].done;
        of += l->engines[i].of;
        speed += l->engines[i].speed;
    }
    double part = of ? (double)done / (double)of : 0;
    char bar[CELLS + 3] = "";
    if (l->terminal) {
        memset(bar, '.', CELLS);
        memset(bar, '#', (size_t)(part * CELLS));
        bar[CELLS] = ' ';
    }
    snprintf(out, size, "loading weights: %s%.0f %%, %.1f of %.1f GB, %.2f GB/s", bar, 100 * part,
             (double)done / 1e3, (double)of / 1e3, speed);
}

void loading_show(struct loading *l, u64 now_ns)
{
    char text[160];
    if (!l->n || !(l->terminal || l->changed)) return;
    if (!l->terminal && l->shown_ns && now_ns - l->shown_ns < line_every_ns) return;
    describe(l, text, sizeof(text));
    l->changed = false;
    l->shown_ns = now_ns;
    if (!l->terminal) {
        log_info("%s", text);
        return;
    }
    fprintf(stderr, "\r%s\033[K", text);
    fflush(stderr);
    l->drawn = true;
}

void loading_hide(struct loading *l)
{
    if (!l->drawn) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    l->drawn = false;
}
