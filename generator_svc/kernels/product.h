/* A product of quantized rows with a packed weight, and what is done with each of its sums. */
#ifndef RAGSERVE_PRODUCT_H
#define RAGSERVE_PRODUCT_H

#include "vector.h"

#define PANEL 16 /* outputs that are computed together */
#define BLOCK 8  /* inputs that are multiplied together */
#define GROUP 128 /* inputs of a row that share step and minimum; a multiple of BLOCK */
#define FINE_GROUP 64 /* in a fine product */
#define CHUNK 4 /* panels that a thread takes at a time, where there are enough for all */
#define LINE 64 /* bytes of a line of the cache: one panel's weights for four inputs */

enum { NONE, RELU, GELU, GELU_TANH, SILU };

typedef struct {
    const uint8_t *q; /* [rows, width], width a multiple of BLOCK */
    const float *step, *minimum; /* [rows, groups] */
    const int8_t *weight;
    const float *scale, *bias; /* of the outputs, padded to panels */
    const float *sums;         /* [groups, padded outputs]: of the weights' q */
    const float *residual;
    float *y;
    int64_t rows, width, group, groups, out, padded, beside;
    int fine, activation;
} Product;

/* Where the weights of a panel stand for inputs 4 * step and the following; those for the next four are `along` behind
 * them. Packed are runs of `beside` panels (the last one maybe of fewer), each [width / 4][its panels][16][4]: what is
 * computed together is read as one run of memory. */
static inline const int8_t *weights_at(const Product *p, int64_t panel, int64_t step, int64_t *along) {
    const int64_t first = panel / p->beside * p->beside, left = p->padded / PANEL - first;
    *along = (left < p->beside ? left : p->beside) * LINE;
    return p->weight + first * PANEL * p->width + step * *along + (panel - first) * LINE;
}

/* Sums of eight outputs, `first` and the following, to y. */
static inline __attribute__((always_inline)) void finish(const Product *p, int64_t row, int64_t first, __m256 total) {
    const float *bias = p->bias;
    const __m256 scale = _mm256_loadu_ps(p->scale + first);
    __m256 y = bias ? _mm256_fmadd_ps(scale, total, _mm256_loadu_ps(bias + first)) : _mm256_mul_ps(scale, total);
    switch (p->activation) {
    case RELU:
        y = _mm256_max_ps(y, _mm256_setzero_ps());
        break;
    case GELU:
        y = gelu8(y);
        break;
    case GELU_TANH:
        y = gelu_tanh8(y);
        break;
    case SILU:
        y = gated8(y, y);
        break;
    }
    float *to = p->y + row * p->out + first;
    const float *more = p->residual ? p->residual + row * p->out + first : 0;
    if (first + 8 <= p->out) {
        _mm256_storeu_ps(to, more ? _mm256_add_ps(y, _mm256_loadu_ps(more)) : y);
        return;
    }
    float last[8];
    _mm256_storeu_ps(last, y);
    for (int64_t i = 0; first + i < p->out; i++)
        to[i] = last[i] + (more ? more[i] : 0);
}

/* The same sums on processors with AVX-512 VNNI: vnni.c. `next` is the chunk that this thread takes next, or null. */
int vnni_here(void);
void vnni_panels(const Product *p, int64_t first, int64_t count, const int8_t *next);

#endif
