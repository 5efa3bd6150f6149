/* What one kernel is to another: parts that all threads of a parallel region run together. Each ends with a barrier. */
#ifndef RAGSERVE_KERNELS_H
#define RAGSERVE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* A weight as `pack_int8` leaves it, and what is done with the sums; bias may be null. `fine`: of 8 bits, and inputs in
 * groups of 64 (see linear_int8.c). */
typedef struct {
    int64_t in, out, beside, fine, activation;
    const int8_t *weight;
    const float *scale, *sums, *bias;
} Linear;

/* The paths of rows through the slots of a cache: see `path_attention`. */
typedef struct {
    const int64_t *table, *lengths;
    const float *bias;
    int64_t rows, longest, heads, dim;
    float scale;
} Paths;

/* The documents of groups of rows: see `cross_attention`. */
typedef struct {
    const int64_t *tokens, *starts;
    int64_t groups, longest, heads, dim;
    float scale;
    int half;
} Documents;

/* Documents one after the other, and what is added to the scores of their tokens: see `document_attention`. */
typedef struct {
    const int64_t *starts;
    const float *bias;
    int64_t documents, longest, heads, dim;
    float scale;
} Packed;

/* A step of one session, and where its scores go: see `score_tokens`. Shapes: logits [docs, hypotheses, vocab], priors
 * [docs] or null, banned ids of each hypothesis from `starts` on and rising, norms [docs, hypotheses], marginal
 * [hypotheses, vocab], peaks [hypotheses, blocks]: the largest marginals of each block of tokens, masses [hypotheses]. */
typedef struct {
    int64_t docs, hypotheses, vocab;
    const float *logits, *priors;
    const int64_t *banned, *starts;
    float *norms, *marginal, *peaks, *masses;
} Scores;

/* Whether kernels use vectors of 512 bits: where products use VNNI. */
int vnni_chosen(void);

size_t linear_room(int64_t rows, int64_t in, int64_t fine);
void linear_team(const Linear *l, const float *x, int64_t rows, const float *residual, float *y, void *room, int threads);

/* Floats of each thread's own part of `scores`. */
int64_t score_room(int64_t longest);
int64_t longest_of(const int64_t *tokens, int64_t groups);
void cross_team(const Documents *d, const void *const *documents, const float *query, float *y, float *scores);
int64_t document_room(int64_t longest, int64_t dim);
void document_team(const Packed *p, const float *qkv, float *y, float *room);
void path_team(const Paths *p, const float *qkv, float *cache, float *y, float *scores);

#endif
