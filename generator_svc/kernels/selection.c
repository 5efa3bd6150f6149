/* Log-softmax and the marginal over documents of a step, each in one pass over the logits, and the best tokens; see
 * candidates.py. */
#if defined(__x86_64__)

#include "kernels.h"
#include "vector.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 512 /* tokens that a thread takes at a time; a multiple of 16 */

/* Some values: the largest, and the sum of exp(value - largest). */
typedef struct {
    float most, sum;
} Part;

#include "by_8.h"
#include "selection_blocks.h"
#include "by_none.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#include "vector16.h"
#include "by_16.h"
#include "selection_blocks.h"
#pragma GCC pop_options

static inline int64_t blocks_of(int64_t vocab) { return (vocab + BLOCK - 1) / BLOCK; }

/* The last of some values, those that fill no 16, and -infinity. */
static void last16(const float *x, int64_t n, float *to) {
    for (int64_t i = 0; i < 16; i++)
        to[i] = i < n ? x[i] : -INFINITY;
}

static Part part_of(const float *x, int64_t n) {
    float whole[BLOCK];
    if (n % 16) {
        memcpy(whole, x, (size_t)(n / 16 * 16) * sizeof(float));
        last16(x + n / 16 * 16, n % 16, whole + n / 16 * 16);
        x = whole;
        n = n / 16 * 16 + 16;
    }
    return vnni_chosen() ? part_of_by_16(x, n) : part_of_by_8(x, n);
}

/* log of the sum of exp over all values of some parts; NaN where one is. */
static float together(const Part *parts, int64_t n) {
    float most = -INFINITY;
    double total = 0;
    for (int64_t i = 0; i < n; i++)
        most = parts[i].most > most ? parts[i].most : most;
    for (int64_t i = 0; i < n; i++)
        total += parts[i].most == most ? parts[i].sum : parts[i].sum * exp((double)parts[i].most - most);
    return isinf(most) && !isnan(total) ? most : most + (float)log(total);
}

static void norms_team(const float *logits, int64_t rows, int64_t vocab, Part *parts, float *norms) {
    const int64_t blocks = blocks_of(vocab);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < rows * blocks; item++) {
        const int64_t start = item % blocks * BLOCK, left = vocab - start;
        parts[item] = part_of(logits + item / blocks * vocab + start, left < BLOCK ? left : BLOCK);
    }
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++)
        norms[row] = together(parts + row * blocks, blocks);
}

/* logits [rows, vocab] -> norms [rows]. 0, or -1 without memory. */
int log_norms(const float *logits, int64_t rows, int64_t vocab, float *norms, int threads) {
    Part *parts = malloc((size_t)(rows * blocks_of(vocab)) * sizeof(Part));
    if (!parts)
        return -1;
#pragma omp parallel num_threads(threads)
    norms_team(logits, rows, vocab, parts, norms);
    free(parts);
    return 0;
}

/* y [n]: log of the sum over documents of exp(x + shift). */
static void marginal(const float *x, int64_t stride, const float *shifts, int64_t step, int64_t docs, int64_t n, float *y) {
    const int64_t whole = n / 16 * 16;
    void (*const run)(const float *, int64_t, const float *, int64_t, int64_t, int64_t, float *) =
        vnni_chosen() ? marginal_by_16 : marginal_by_8;
    run(x, stride, shifts, step, docs, whole, y);
    if (whole == n)
        return;
    float last[16 * docs], result[16];
    for (int64_t d = 0; d < docs; d++)
        last16(x + d * stride + whole, n - whole, last + 16 * d);
    run(last, 16, shifts, step, docs, 16, result);
    memcpy(y + whole, result, (size_t)(n - whole) * sizeof(float));
}

/* Of rising ids, the first that is not below `id`. */
static const int64_t *from_id(const int64_t *ids, const int64_t *end, int64_t id) {
    while (ids < end) {
        const int64_t *middle = ids + (end - ids) / 2;
        if (*middle < id)
            ids = middle + 1;
        else
            end = middle;
    }
    return ids;
}

/* The marginals of one block of tokens, -infinity where banned. */
static Part marginal_block(const Scores *s, const float *shifts, int64_t hypothesis, int64_t start) {
    const int64_t n = s->vocab - start < BLOCK ? s->vocab - start : BLOCK;
    float *y = s->marginal + hypothesis * s->vocab;
    marginal(s->logits + hypothesis * s->vocab + start, s->hypotheses * s->vocab, shifts + hypothesis, s->hypotheses,
             s->docs, n, y + start);
    const int64_t *end = s->banned + s->starts[hypothesis + 1];
    for (const int64_t *id = from_id(s->banned + s->starts[hypothesis], end, start); id < end && *id < start + n; id++)
        y[*id] = -INFINITY;
    return part_of(y + start, n);
}

/* Logits -> norms, marginal, peaks and masses. 0, or -1 without memory. */
int score_tokens(const Scores *s, int threads) {
    const int64_t blocks = blocks_of(s->vocab), rows = s->docs * s->hypotheses;
    Part *parts = malloc((size_t)(rows * blocks) * sizeof(Part));
    float *shifts = malloc((size_t)rows * sizeof(float));
    if (parts && shifts)
#pragma omp parallel num_threads(threads)
    {
        norms_team(s->logits, rows, s->vocab, parts, s->norms);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            shifts[row] = (s->priors ? s->priors[row / s->hypotheses] : 0) - s->norms[row];
#pragma omp for schedule(static)
        for (int64_t item = 0; item < s->hypotheses * blocks; item++) {
            parts[item] = marginal_block(s, shifts, item / blocks, item % blocks * BLOCK);
            s->peaks[item] = parts[item].most;
        }
#pragma omp for schedule(static)
        for (int64_t hypothesis = 0; hypothesis < s->hypotheses; hypothesis++)
            s->masses[hypothesis] = together(parts + hypothesis * blocks, blocks);
    }
    const int status = parts && shifts ? 0 : -1;
    free(parts);
    free(shifts);
    return status;
}

/* The best tokens found so far: by falling value, equal ones by rising id. */
typedef struct {
    int64_t room, size;
    float *values;
    int32_t *ids;
} Best;

/* What a value must exceed to be among them. */
static float bound_of(const Best *best) { return best->size < best->room ? -INFINITY : best->values[best->room - 1]; }

static void insert(Best *best, float value, int32_t id) {
    int64_t place = best->size < best->room ? best->size++ : best->room - 1;
    for (; place && best->values[place - 1] < value; place--) {
        best->values[place] = best->values[place - 1];
        best->ids[place] = best->ids[place - 1];
    }
    best->values[place] = value;
    best->ids[place] = id;
}

/* Tokens of n values at x, the first of them with id `first`; only those of at least `least` are looked at. */
static void best_of(Best *best, const float *x, int64_t n, int64_t first, float least) {
    const __m256 least8 = _mm256_set1_ps(least);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int seen = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), least8, _CMP_GE_OQ)); seen; seen &= seen - 1) {
            const int64_t place = i + __builtin_ctz(seen);
            if (x[place] > bound_of(best))
                insert(best, x[place], (int32_t)(first + place));
        }
    for (; i < n; i++)
        if (x[i] >= least && x[i] > bound_of(best))
            insert(best, x[i], (int32_t)(first + i));
}

/* Impossible tokens that are not banned fill the places left, by rising id; -1 those for which there is none. */
static void fill(const Scores *s, int64_t hypothesis, Best *best) {
    const float *y = s->marginal + hypothesis * s->vocab;
    const int64_t *banned = s->banned + s->starts[hypothesis], *end = s->banned + s->starts[hypothesis + 1];
    for (int64_t id = 0; id < s->vocab && best->size < best->room; id++) {
        banned = from_id(banned, end, id);
        if (y[id] == -INFINITY && (banned == end || *banned != id))
            best->ids[best->size++] = (int32_t)id;
    }
    while (best->size < best->room)
        best->ids[best->size++] = -1;
}

/* The best `count` tokens of one hypothesis. As many blocks have a peak of at least `least`, the count-th largest peak:
 * so have as many tokens. */
static void best_tokens(const Scores *s, int64_t hypothesis, int64_t count, float *values, int32_t *ids) {
    const int64_t blocks = blocks_of(s->vocab);
    const float *peaks = s->peaks + hypothesis * blocks;
    Best best = {count, 0, values, ids};
    for (int64_t block = 0; block < blocks; block++)
        if (peaks[block] > bound_of(&best))
            insert(&best, peaks[block], 0);
    const float least = bound_of(&best);
    best.size = 0;
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t start = block * BLOCK, left = s->vocab - start;
        if (peaks[block] >= least && peaks[block] > bound_of(&best))
            best_of(&best, s->marginal + hypothesis * s->vocab + start, left < BLOCK ? left : BLOCK, start, least);
    }
    fill(s, hypothesis, &best);
}

/* chosen [n] hypotheses -> ids [n, count], -1 where fewer are allowed, and their log_probs [n, docs, count]. */
int select_tokens(const Scores *s, const int64_t *chosen, int64_t n, int64_t count, int32_t *ids, float *log_probs) {
    float *values = malloc((size_t)count * sizeof(float));
    if (!values)
        return -1;
    for (int64_t i = 0; i < n; i++) {
        best_tokens(s, chosen[i], count, values, ids + i * count);
        for (int64_t d = 0; d < s->docs; d++) {
            const int64_t row = d * s->hypotheses + chosen[i];
            for (int64_t c = 0; c < count; c++) {
                const int32_t id = ids[i * count + c];
                log_probs[(i * s->docs + d) * count + c] = id < 0 ? -INFINITY : s->logits[row * s->vocab + id] - s->norms[row];
            }
        }
    }
    free(values);
    return 0;
}

#endif
