/* tokenize DIR FILE [SECONDS]: how fast the tokenizer in DIR encodes the texts of FILE (each ended by a NUL), in one thread. Prints
 * "MEGABYTES SECONDS CHECKSUM IDS" for each round until SECONDS (3) are over. */
#include "mpiserve/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static u64 encode_all(const struct tokenizer *t, const struct buf *texts, struct ids *ids, u64 *n)
{
    struct error err;
    u64 sum = 0;
    *n = 0;
    for (size_t at = 0; at < texts->len;) {
        const char *text = texts->data + at;
        size_t len = strlen(text);
        ids->len = 0;
        if (tokenizer_encode(t, text, len, 0, ids, &err)) {
            fprintf(stderr, "%s\n", err.message);
            exit(1);
        }
        *n += ids->len;
        for (size_t i = 0; i < ids->len; i++) sum = (sum * 31 + (u64)ids->data[i]) & 0xFFFFFFFFu;
        at += len + 1;
    }
    return sum;
}

int main(int argc, char **argv)
{
    struct error err;
    struct buf texts = {0};
    struct ids ids = {0};
    if (argc < 3) return 2;
    double seconds_in_all = argc > 3 ? atof(argv[3]) : 3;
    struct tokenizer *t = tokenizer_load(argv[1], &err);
    if (!t || file_read(argv[2], (size_t)1 << 30, &texts, &err)) {
        fprintf(stderr, "%s: %s\n", err.where, err.message);
        return 1;
    }
    u64 begin = clock_ns(), n;
    do {
        u64 start = clock_ns(), sum = encode_all(t, &texts, &ids, &n);
        double seconds = (double)(clock_ns() - start) / 1e9;
        printf("%.6f %.6f %llu %llu\n", (double)texts.len / 1e6, seconds, (unsigned long long)sum,
               (unsigned long long)n);
        fflush(stdout);
    } while ((double)(clock_ns() - begin) / 1e9 < seconds_in_all);
    ids_release(&ids);
    buf_release(&texts);
    tokenizer_free(t);
    return 0;
}
