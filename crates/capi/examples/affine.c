/* A C engine around a library that only works on the thread that opened it; eight threads use it. */

#include <onelane.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The library. Many are like this: a context is bound to the thread that made it. */
typedef struct {
  pthread_t home;
  long calls;
} affine_context;

static affine_context *affine_open(void) {
  affine_context *context = calloc(1, sizeof *context);
  if (context != NULL) context->home = pthread_self();
  return context;
}

static int affine_square(affine_context *context, const double *in, double *out) {
  if (!pthread_equal(context->home, pthread_self())) return -1; /* The wrong thread. */
  if (*in < 0) return -2;
  context->calls++;
  *out = *in * *in;
  return 0;
}

static void affine_close(affine_context *context) { free(context); }

/* The engine: the library's calls, as onelane makes them on the worker. */
static onelane_status build(void *context, void **engine, onelane_error *error) {
  (void)context;
  *engine = affine_open();
  if (*engine != NULL) return ONELANE_OK;
  onelane_error_set(error, "there is no memory for a context", NULL, NULL);
  return ONELANE_OUT_OF_MEMORY;
}

typedef struct {
  double input, output;
} square;

static onelane_status run(void *engine, void *const *items, size_t count, onelane_error *error) {
  for (size_t at = 0; at < count; at++) {
    square *item = items[at];
    int code = affine_square(engine, &item->input, &item->output);
    if (code != 0) {
      const char *text = code == -1 ? "used on the wrong thread" : "it must not be negative";
      onelane_error_set(error, text, NULL, NULL);
      return ONELANE_ENGINE_FAILED;
    }
  }
  return ONELANE_OK;
}

static void drop_engine(void *engine) { affine_close(engine); }

static void check(onelane_status status) {
  if (status == ONELANE_OK) return;
  fprintf(stderr, "onelane: %s\n", onelane_last_error());
  exit(1);
}

static onelane_queue *queue;

/* Waits with a ticket, so that the item may lie on this thread's stack. */
static onelane_status ask(square *item) {
  onelane_request request = {.struct_size = sizeof request, .item = item};
  onelane_ticket *ticket = NULL;
  check(onelane_queue_submit(queue, &request, ONELANE_FOREVER, &ticket));
  return onelane_ticket_wait(ticket, ONELANE_FOREVER);
}

static void *caller(void *number) {
  for (int at = 0; at < 1000; at++) {
    square item = {.input = (double)(*(int *)number * 1000 + at)};
    check(ask(&item));
    if (item.output != item.input * item.input) {
      fprintf(stderr, "a wrong answer\n");
      exit(1);
    }
  }
  return NULL;
}

int main(void) {
  onelane_executor_config config = {.struct_size = sizeof config, .device = "affine"};
  onelane_executor *executor = NULL;
  check(onelane_executor_shared(&config, &executor));
  onelane_engine engine = {.struct_size = sizeof engine,
                           .build = build,
                           .run = run,
                           .drop_engine = drop_engine,
                           .idempotent = 1};
  check(onelane_queue_new(executor, NULL, &engine, &queue));

  pthread_t threads[8];
  int numbers[8];
  for (int at = 0; at < 8; at++) {
    numbers[at] = at;
    if (pthread_create(&threads[at], NULL, caller, &numbers[at]) != 0) return 1;
  }
  for (int at = 0; at < 8; at++) pthread_join(threads[at], NULL);

  square bad = {.input = -1};
  if (ask(&bad) != ONELANE_ENGINE_FAILED) return 1;
  printf("a bad request: %s\n", onelane_last_error());

  onelane_stats stats = {.struct_size = sizeof stats};
  check(onelane_queue_stats(queue, &stats));
  printf("%llu right from 8 threads, in %llu batches\n", (unsigned long long)stats.completed,
         (unsigned long long)stats.batches);
  check(onelane_queue_shutdown(queue, ONELANE_DRAIN, ONELANE_FOREVER));
  check(onelane_queue_release(queue));
  check(onelane_executor_release(executor));
  return stats.completed == 8000 ? 0 : 1;
}
