/* Attention of every token to all tokens of its document: what an encoder does, for documents one after the other.
 *
 * Every document and head is computed on its own: a result does not depend on the documents beside it.
 */
#if defined(__x86_64__)

#include "kernels.h"
#include "vector.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 6 /* of queries that are computed together */

/* One head of one document: its first query, key and value stand at qkv, a token's in `width` floats. Laid out:
 * keys [dim, tokens], values [tokens, dim], query [ROWS, dim], scores [ROWS, tokens], sums [ROWS, dim]; columns are
 * padded to 16, but for those of query. */
typedef struct {
    const float *qkv, *bias;
    float *y;
    int64_t tokens, longest, dim, inner, width;
    float scale, *keys, *values, *query, *scores, *sums;
} Head;

static inline int64_t up16(int64_t n) { return (n + 15) / 16 * 16; }

int64_t document_room(int64_t longest, int64_t dim) {
    return (dim + ROWS) * up16(longest) + (longest + ROWS) * up16(dim) + up16(ROWS * dim);
}

static void lay_out(const Head *h) {
    const int64_t n16 = up16(h->tokens), dim16 = up16(h->dim);
    for (int64_t d = 0; d < h->dim; d++)
        for (int64_t t = h->tokens; t < n16; t++)
            h->keys[d * n16 + t] = 0;
    for (int64_t t = 0; t < h->tokens; t++) {
        const float *key = h->qkv + t * h->width + h->inner;
        for (int64_t d = 0; d < h->dim; d++)
            h->keys[d * n16 + t] = key[d];
        memcpy(h->values + t * dim16, key + h->inner, (size_t)h->dim * sizeof(float));
        memset(h->values + t * dim16 + h->dim, 0, (size_t)(dim16 - h->dim) * sizeof(float));
    }
}

#define VECTORS 2
#include "by_8.h"
#include "document_rows.h"
#include "by_none.h"
#undef VECTORS

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl")
#include "vector16.h"
#define VECTORS 4
#include "by_16.h"
#include "document_rows.h"
#pragma GCC pop_options

void document_team(const Packed *p, const float *qkv, float *y, float *room) {
    const int64_t dim = p->dim, inner = p->heads * dim;
    float *own = room + omp_get_thread_num() * document_room(p->longest, dim);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < p->documents * p->heads; item++) {
        const int64_t head = item % p->heads, start = p->starts[item / p->heads];
        const int64_t n = p->starts[item / p->heads + 1] - start, n16 = up16(n), dim16 = up16(dim);
        Head h = {qkv + start * 3 * inner + head * dim, p->bias ? p->bias + head * p->longest * p->longest : 0,
                  y + start * inner + head * dim, n, p->longest, dim, inner, 3 * inner, p->scale, own};
        h.values = h.keys + dim * n16;
        h.query = h.values + n * dim16;
        h.scores = h.query + up16(ROWS * dim);
        h.sums = h.scores + ROWS * n16;
        lay_out(&h);
        for (int64_t row = 0; row < n; row += ROWS)
            (vnni_chosen() ? head_rows_by_16 : head_rows_by_8)(&h, row, n - row < ROWS ? n - row : ROWS);
    }
}

/* qkv [tokens, 3 * heads * dim] of documents whose tokens are starts[i] .. starts[i + 1]; bias null or
 * [heads, longest, longest]; y [tokens, heads * dim]. dim is a multiple of 8. 0, or -1 without memory. */
int document_attention(const float *qkv, float *y, const int64_t *starts, const float *bias, int64_t documents,
                       int64_t longest, int64_t heads, int64_t dim, float scale, int threads) {
    const Packed p = {starts, bias, documents, longest, heads, dim, scale};
    float *room = aligned_alloc(64, (size_t)(threads * document_room(longest, dim)) * sizeof(float));
    if (!room)
        return -1;
#pragma omp parallel num_threads(threads)
    document_team(&p, qkv, y, room);
    free(room);
    return 0;
}

#endif
