/* A list of kernels over shared values, run in one parallel region: the layers of a decoder, for one token a row.
 *
 * Between two kernels there is a barrier and nothing else. The results have the bits of the kernels called one by one.
 */
#if defined(__x86_64__)

#include "kernels.h"
#include "vector.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { LINEAR, LAYER_NORM, RMS_NORM, MULTIPLY, PATHS, DOCUMENTS };

/* One kernel. `from`, `more` and `to` say where its inputs and its result stand, in floats of one row, and `more` is -1
 * where there is no second input; the result has `width` floats a row. `layer` says which cache, or which documents. */
typedef struct {
    int64_t kind, from, more, to, width, layer;
    Linear linear;
    const float *norm_weight, *norm_bias; /* the bias may be null */
    double eps;
} Op;

/* What one run is over: x and its width, y, the width of all values together, and whatever rows attend to. */
typedef struct {
    int64_t rows, threads, width, x_width;
    const float *x;
    float *y;
    Paths paths;
    float *const *caches; /* [layers] */
    Documents documents;
    const void *const *addresses; /* [layers, groups] */
} Run;

/* sum of (x - shift)^2 */
static float squares(const float *x, int64_t n, float shift) {
    __m256 sum = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(shift));
        sum = _mm256_fmadd_ps(d, d, sum);
    }
    float total = sum8(sum);
    for (; i < n; i++)
        total += (x[i] - shift) * (x[i] - shift);
    return total;
}

static float mean_of(const float *x, int64_t n) {
    __m256 sum = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        sum = _mm256_add_ps(sum, _mm256_loadu_ps(x + i));
    float total = sum8(sum);
    for (; i < n; i++)
        total += x[i];
    return total / (float)n;
}

/* LayerNorm, or without mean and bias the root-mean-square norm, of rows of n. */
static void norm_team(const float *x, int64_t rows, int64_t n, const float *weight, const float *bias, double eps,
                      int centred, float *y) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * n, mean = centred ? mean_of(from, n) : 0;
        const float scale = 1 / sqrtf(squares(from, n, mean) / (float)n + (float)eps);
        for (int64_t i = 0; i < n; i++)
            y[row * n + i] = (from[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
    }
}

static void multiply_team(const float *a, const float *b, int64_t n, float *y) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] * b[i];
}

/* Called by all threads. `values` has room for rows * width floats. */
static void op_team(const Op *op, const Run *run, float *values, void *room, float *scores) {
    const int64_t rows = run->rows;
    const float *from = values + op->from * rows, *more = op->more < 0 ? 0 : values + op->more * rows;
    float *to = values + op->to * rows;
    switch (op->kind) {
    case LINEAR:
        linear_team(&op->linear, from, rows, more, to, room, (int)run->threads);
        break;
    case LAYER_NORM:
    case RMS_NORM:
        norm_team(from, rows, op->width, op->norm_weight, op->norm_bias, op->eps, op->kind == LAYER_NORM, to);
        break;
    case MULTIPLY:
        multiply_team(from, more, rows * op->width, to);
        break;
    case PATHS:
        path_team(&run->paths, from, run->caches[op->layer], to, scores);
        break;
    case DOCUMENTS:
        cross_team(&run->documents, run->addresses + op->layer * run->documents.groups, from, to, scores);
        break;
    }
}

/* Runs all kernels; x is the first value, y a copy of the last. 0, or -1 without memory. */
int run_program(const Op *ops, int64_t count, const Run *run) {
    size_t room_bytes = 0;
    for (int64_t i = 0; i < count; i++)
        if (ops[i].kind == LINEAR && linear_room(run->rows, ops[i].linear.in, ops[i].linear.fine) > room_bytes)
            room_bytes = linear_room(run->rows, ops[i].linear.in, ops[i].linear.fine);
    const Documents *d = &run->documents;
    const int64_t longest = d->longest > run->paths.longest ? d->longest : run->paths.longest;
    room_bytes = (room_bytes + 63) / 64 * 64;
    const size_t of_values = (size_t)(run->rows * run->width * 4 + 63) / 64 * 64;
    char *all = aligned_alloc(64, room_bytes + of_values + (size_t)(run->threads * score_room(longest) * 4 + 63) / 64 * 64);
    if (!all)
        return -1;
    float *values = (float *)(all + room_bytes), *scores = (float *)(all + room_bytes + of_values);
    const Op *last = ops + count - 1;
    memcpy(values, run->x, (size_t)(run->rows * run->x_width) * sizeof(float));
#pragma omp parallel num_threads((int)run->threads)
    for (int64_t i = 0; i < count; i++)
        op_team(ops + i, run, values, all, scores);
    memcpy(run->y, values + last->to * run->rows, (size_t)(run->rows * last->width) * sizeof(float));
    free(all);
    return 0;
}

#endif
