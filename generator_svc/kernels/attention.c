/* Attention of single tokens over keys and values that stay where they are: nothing is gathered or expanded.
 *
 * Every (row, head) is computed on its own, in one order of additions: a result does not depend on the rows beside it.
 */
#if defined(__x86_64__)

#include "kernels.h"
#include "vector.h"

#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#define TILE 4 /* rows that read a document's key or value together, or heads that read a slot's */

static inline __m256 load8(const void *from, int64_t i, int half) {
    if (half)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)from + i)));
    return _mm256_loadu_ps((const float *)from + i);
}

/* scores [n] -> exp(scores - their maximum), and 1 / the sum of these; NaN where a score is not finite, as it is with a
 * key beyond the range of float16. scores has room for 8 more. */
static float softmax(float *scores, int64_t n) {
    for (int64_t t = n; t % 8; t++)
        scores[t] = -FLT_MAX;
    const __m256 zero = _mm256_setzero_ps();
    __m256 high = _mm256_set1_ps(-INFINITY), total = zero;
    for (int64_t t = 0; t < n; t += 8) {
        const __m256 some = _mm256_loadu_ps(scores + t);
        high = _mm256_max_ps(high, some);
        total = _mm256_fmadd_ps(zero, some, total); /* 0, or NaN: a maximum and exp8 lose that */
    }
    const __m256 most = _mm256_set1_ps(max8(high));
    for (int64_t t = 0; t < n; t += 8) {
        const __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + t), most));
        _mm256_storeu_ps(scores + t, e);
        total = _mm256_add_ps(total, e);
    }
    return 1.0f / sum8(total);
}

/* Some vectors of the values of a document, from d on, weighted and summed for each row. */
static inline __attribute__((always_inline)) void cross_values(const void *values, int64_t n, int64_t dim, int64_t d,
                                                               const float *weights, int64_t room, const float *shares,
                                                               float *y, int64_t stride, const int rows, const int vectors,
                                                               const int half) {
    __m256 sums[TILE][8];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            sums[r][v] = _mm256_setzero_ps();
    for (int64_t t = 0; t < n; t++) {
        __m256 value[8];
        for (int v = 0; v < vectors; v++)
            value[v] = load8(values, t * dim + d + 8 * v, half);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++)
                sums[r][v] = _mm256_fmadd_ps(value[v], _mm256_set1_ps(weights[r * room + t]), sums[r][v]);
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            _mm256_storeu_ps(y + r * stride + 8 * v, _mm256_mul_ps(sums[r][v], _mm256_set1_ps(shares[r])));
}

/* Rows `first` .. `first + count` of one head over a document: keys and values [n_tokens, dim]. */
static inline __attribute__((always_inline)) void cross_rows(const float *query, float *y, int64_t stride, const void *keys,
                                                             const void *values, int64_t n, int64_t dim, float scale,
                                                             float *scores, int64_t room, const int rows, const int half) {
    for (int64_t t = 0; t < n; t++) {
        __m256 sums[TILE];
        for (int r = 0; r < rows; r++)
            sums[r] = _mm256_setzero_ps();
        for (int64_t d = 0; d < dim; d += 8) {
            const __m256 key = load8(keys, t * dim + d, half);
            for (int r = 0; r < rows; r++)
                sums[r] = _mm256_fmadd_ps(key, _mm256_loadu_ps(query + r * stride + d), sums[r]);
        }
        for (int r = 0; r < rows; r++)
            scores[r * room + t] = scale * sum8(sums[r]);
    }
    float shares[TILE];
    for (int r = 0; r < rows; r++)
        shares[r] = softmax(scores + r * room, n);
    const int vectors = rows == 1 ? 8 : rows == 2 ? 4 : 2; /* eight sums at a time: one would wait for itself */
    int64_t d = 0;
    for (; d + 8 * vectors <= dim; d += 8 * vectors)
        cross_values(values, n, dim, d, scores, room, shares, y + d, stride, rows, vectors, half);
    for (; d < dim; d += 8)
        cross_values(values, n, dim, d, scores, room, shares, y + d, stride, rows, 1, half);
}

int64_t score_room(int64_t longest) { return TILE * (longest + 8); }

#define CROSS(rows, half) \
    cross_rows(q, to, inner, keys, values, n, dim, d->scale, own, room, rows, half)

void cross_team(const Documents *d, const void *const *documents, const float *query, float *y, float *scores) {
    const int64_t heads = d->heads, dim = d->dim, inner = heads * dim, size = d->half ? 2 : 4, room = d->longest + 8;
    float *own = scores + omp_get_thread_num() * score_room(d->longest);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < d->groups * heads; item++) {
        const int64_t group = item / heads, head = item % heads, n = d->tokens[group];
        const char *keys = (const char *)documents[group] + head * n * dim * size;
        const char *values = keys + heads * n * dim * size;
        for (int64_t row = d->starts[group]; row < d->starts[group + 1]; row += TILE) {
            const float *q = query + row * inner + head * dim;
            float *to = y + row * inner + head * dim;
            const int64_t left = d->starts[group + 1] - row;
            if (left >= 4) {
                if (d->half) CROSS(4, 1); else CROSS(4, 0);
            } else if (left == 3) {
                if (d->half) CROSS(3, 1); else CROSS(3, 0);
            } else if (left == 2) {
                if (d->half) CROSS(2, 1); else CROSS(2, 0);
            } else {
                if (d->half) CROSS(1, 1); else CROSS(1, 0);
            }
        }
    }
}

int64_t longest_of(const int64_t *tokens, int64_t groups) {
    int64_t longest = 0;
    for (int64_t g = 0; g < groups; g++)
        longest = tokens[g] > longest ? tokens[g] : longest;
    return longest;
}

/* query and y [n_rows, heads * dim]; documents[g] points at [2, heads, tokens[g], dim], whose rows are
 * starts[g] .. starts[g + 1]. half: keys and values are float16. dim is a multiple of 8. 0, or -1 without memory. */
int cross_attention(const float *query, float *y, const void *const *documents, const int64_t *tokens,
                    const int64_t *starts, int64_t groups, int64_t heads, int64_t dim, float scale, int half, int threads) {
    const Documents d = {tokens, starts, groups, longest_of(tokens, groups), heads, dim, scale, half};
    float *scores = malloc((size_t)(threads * score_room(d.longest)) * sizeof(float));
    if (!scores)
        return -1;
#pragma omp parallel num_threads(threads)
    cross_team(&d, documents, query, y, scores);
    free(scores);
    return 0;
}

/* Some vectors of one head: the values of a path, weighted and summed. */
static inline __attribute__((always_inline)) void weighted(const float *values, const int64_t *path, int64_t n,
                                                           int64_t stride, const float *weights, __m256 share, float *y,
                                                           const int vectors) {
    __m256 sums[8];
    for (int v = 0; v < vectors; v++)
        sums[v] = _mm256_setzero_ps();
    for (int64_t t = 0; t < n; t++) {
        const __m256 weight = _mm256_set1_ps(weights[t]);
        for (int v = 0; v < vectors; v++)
            sums[v] = _mm256_fmadd_ps(_mm256_loadu_ps(values + path[t] * stride + 8 * v), weight, sums[v]);
    }
    for (int v = 0; v < vectors; v++)
        _mm256_storeu_ps(y + 8 * v, _mm256_mul_ps(sums[v], share));
}

/* One row, heads `first` and the `count` - 1 after it: a token's keys of all of them stand together in memory. */
static void path_heads(const Paths *p, const float *cache, const float *query, float *y, int64_t row, int64_t first,
                       int64_t count, float *scores) {
    const int64_t dim = p->dim, inner = p->heads * dim, n = p->lengths[row], room = p->longest + 8;
    const int64_t *path = p->table + row * p->longest;
    for (int64_t t = 0; t < n; t++) {
        const float *keys = cache + path[t] * 2 * inner + first * dim;
        for (int64_t h = 0; h < count; h++) {
            __m256 sum = _mm256_setzero_ps();
            for (int64_t d = h * dim; d < (h + 1) * dim; d += 8)
                sum = _mm256_fmadd_ps(_mm256_loadu_ps(keys + d), _mm256_loadu_ps(query + d), sum);
            const float bias = p->bias ? p->bias[(row * p->heads + first + h) * p->longest + t] : 0;
            scores[h * room + t] = p->scale * sum8(sum) + bias;
        }
    }
    for (int64_t h = 0; h < count; h++) {
        const __m256 share = _mm256_set1_ps(softmax(scores + h * room, n));
        const float *values = cache + inner + (first + h) * dim;
        int64_t d = 0;
        for (; d + 64 <= dim; d += 64)
            weighted(values + d, path, n, 2 * inner, scores + h * room, share, y + h * dim + d, 8);
        for (; d < dim; d += 8)
            weighted(values + d, path, n, 2 * inner, scores + h * room, share, y + h * dim + d, 1);
    }
}

void path_team(const Paths *p, const float *qkv, float *cache, float *y, float *scores) {
    const int64_t inner = p->heads * p->dim, parts = (p->heads + TILE - 1) / TILE;
    float *own = scores + omp_get_thread_num() * score_room(p->longest);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < p->rows; row++) {
        float *slot = cache + p->table[row * p->longest + p->lengths[row] - 1] * 2 * inner;
        const float *from = qkv + row * 3 * inner + inner;
        for (int64_t i = 0; i < 2 * inner; i += 8)
            _mm256_storeu_ps(slot + i, _mm256_loadu_ps(from + i));
    }
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < p->rows * parts; item++) {
        const int64_t row = item / parts, first = item % parts * TILE;
        const int64_t count = p->heads - first < TILE ? p->heads - first : TILE;
        const float *query = qkv + row * 3 * inner + first * p->dim;
        path_heads(p, cache, query, y + row * inner + first * p->dim, row, first, count, own);
    }
}

/* qkv [n_rows, 3 * inner]: keys and values are first written to the row's own slot, the last of its path; then each
 * row attends to its path. cache [n_slots, 2 * inner]; table [n_rows, longest] of slots, lengths [n_rows];
 * bias null or [n_rows, heads, longest]. y [n_rows, inner]. 0, or -1 without memory. */
int path_attention(const float *qkv, float *y, float *cache, const int64_t *table, const int64_t *lengths, const float *bias,
                   int64_t rows, int64_t longest, int64_t heads, int64_t dim, float scale, int threads) {
    const Paths p = {table, lengths, bias, rows, longest, heads, dim, scale};
    float *scores = malloc((size_t)(threads * score_room(longest)) * sizeof(float));
    if (!scores)
        return -1;
#pragma omp parallel num_threads(threads)
    path_team(&p, qkv, cache, y, scores);
    free(scores);
    return 0;
}

#endif
