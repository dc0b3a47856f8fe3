// SPDX-License-Identifier: Apache-2.0
// Configurations that must be refused, each with the place and the words of its message.
#include <gmock/gmock.h>

#include <chrono>

#include "config/config_files.h"
#include "train/run_config.h"

namespace conclave::train {
namespace {

using testing::HasSubstr;

struct BadConfig {
  std::string name;
  std::string yaml;   // from line 3 on, after kModel and kData; a whole file when it begins with "!"
  std::string place;  // "3:7", or "--set #1"
  std::string message;
  std::vector<std::string> sets = {};
  int64_t ranks = 0;
};
std::ostream& operator<<(std::ostream& out, const BadConfig& bad) { return out << bad.name; }

const char* const kModel = "model: {vocab_size: 512, hidden_size: 64, num_layers: 2, num_attention_heads: 4}\n";
const char* const kData = "data: {train: [{name: a, path: a}], seq_len: 128}\n";

class BadConfigs : public testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigs, AreRefusedWithPlaceAndReason) {
  const BadConfig& bad = GetParam();
  const ConfigFiles files;
  const bool whole = bad.yaml.starts_with("!");
  const auto file = files.write("run.yaml", whole ? bad.yaml.substr(1) : kModel + std::string(kData) + bad.yaml);
  std::vector<config::Override> overrides;
  for (const std::string& set : bad.sets) overrides.push_back({config::Override::Kind::kSet, set});
  const auto start = std::chrono::steady_clock::now();
  const std::string message = config_error([&] { load_config(file, overrides, {.world_size = bad.ranks}); });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_THAT(message, HasSubstr(bad.place.starts_with("--") ? bad.place + ": " : "run.yaml:" + bad.place));
  EXPECT_THAT(message, HasSubstr(bad.message));
  EXPECT_THAT(message, HasSubstr("^")) << "no caret";
  EXPECT_LT(seconds.count(), 30.0);
}

const std::vector<BadConfig> kSyntax = {
    {"UnclosedList", "moe: {num_experts: 8\n", "4:1", "not valid YAML"},
    {"TabIndent", "moe:\n\tnum_experts: 8\n", "4:1", "YAML indents with spaces"},
    {"TwoDocuments", "---\nmoe: {}\n", "3:1", "one YAML document"},
    {"Anchor", "moe: &m {num_experts: 8}\n", "3:6", "anchors and aliases"},
    {"Tag", "moe: {num_experts: !!int 8}\n", "3:20", "tags are not read"},
    {"NotUtf8", "moe: {num_experts: \xFF}\n", "3:20", "is not text"},
    {"DeepNesting", "moe: " + std::string(100000, '[') + std::string(100000, ']') + "\n", "3:37", "deeper than 32"},
    {"LeftOpen", "moe: " + std::string(100000, '[') + "\n", "3:7", "is a bracket or brace left open?"},
    {"ListAtTop", "!- model\n", "1:1", "consists of sections"},
    {"SectionTwice", "data: {seq_len: 64}\n", "3:1", "duplicate key 'data', already given in line 2"},
    {"KeyTwice", "moe:\n  top_k: 1\n  top_k: 2\n", "5:3", "duplicate key 'top_k'"},
    {"IncludeMissing", "include: [none.yaml]\n", "3:11", "there is no file"},
    {"IncludeItself", "include: [run.yaml]\n", "3:11", "includes itself"},
};

const std::vector<BadConfig> kKeys = {
    {"Empty", "!", "1:1", "model.hidden_size: required, but not given"},
    {"NoVocabulary", "!model: {hidden_size: 64, num_layers: 2, num_attention_heads: 4}\n", "1:8",
     "model.vocab_size: required, but not given"},
    {"NoTrainingData", "!" + std::string(kModel), "1:1", "data.train: no training data"},
    {"SourceWithoutPath", "!" + std::string(kModel) + "data: {train: [{name: a}]}\n", "2:16",
     "data.train[0].path: required"},
    {"UnknownSection", "mode: {}\n", "3:1", "unknown key (did you mean model?)"},
    {"Misspelt", "moe: {num_expert: 8}\n", "3:7", "moe.num_expert: unknown key (did you mean num_experts?)"},
    {"Swapped", "moe: {tpo_k: 2}\n", "3:7", "did you mean top_k?"},
    {"InAnotherSection", "train: {seq_len: 128}\n", "3:9", "unknown key here; it exists as data.seq_len"},
    {"AtTopLevel", "lr: 1e-3\n", "3:1", "it exists as optim.lr"},
    {"NameOfHuggingFace", "moe: {num_experts_per_tok: 2}\n", "3:7",
     "what other stacks call num_experts_per_tok is moe.top_k here"},
    {"NameOfMixtral", "moe: {num_local_experts: 8}\n", "3:7", "is moe.num_experts here"},
    {"NameOfNanoGpt", "n_layer: 2\n", "3:1", "is model.num_layers here"},
    {"NameOfMegatron", "parallel: {tensor_model_parallel_size: 2}\n", "3:12", "is parallel.tp here"},
    {"NestedMisspelt", "moe: {router: {norm_topk: true}}\n", "3:16", "did you mean norm_topk_prob?"},
    {"InLossItem", "moe: {balance: {losses: [{coeff: 0.1}]}}\n", "3:27", "did you mean coef?"},
    {"MergeKey", "moe: {<<: {top_k: 1}}\n", "3:7", "unknown key"},
    {"SetUnknown", "", "--set #1", "optim.lrr: unknown key (did you mean lr?)", {"optim.lrr=1"}},
    {"SetWithoutValue", "", "--set #1", "expected --set path=value", {"optim.lr"}},
};

const std::vector<BadConfig> kValues = {
    {"BoolYes", "moe: {enabled: yes}\n", "3:16", "write true"},
    {"BoolOff", "moe: {enabled: off}\n", "3:16", "write false"},
    {"IntAsFraction", "train: {steps: 1e-3}\n", "3:16", "not a whole number, found '1e-3'"},
    {"IntAsText", "train: {steps: many}\n", "3:16", "expected a whole number"},
    {"IntQuoted", "train: {steps: \"100\"}\n", "3:16", "remove the quotes"},
    {"IntOverflow", "train: {steps: 1e30}\n", "3:16", "too large for a 64-bit integer"},
    {"IntBeyondReason", "train: {steps: 2000B}\n", "3:16", "at most 1000000000"},
    {"NoHash", "moe: {dispatch: {compression: {hashes: 0}}}\n", "3:40", "must be at least 1"},
    {"UnknownCompression", "moe: {dispatch: {compression: {type: lhs}}}\n", "3:38", "lsh"},
    {"IntNegative", "train: {steps: -5}\n", "3:16", "must be at least 1"},
    {"IntOctal", "train: {steps: 0100}\n", "3:16", "leading zero"},
    {"FloatNan", "optim: {lr: .nan}\n", "3:13", "finite"},
    {"FloatInfinite", "optim: {lr: .inf}\n", "3:13", "finite"},
    {"FloatOverflow", "optim: {lr: 1e400}\n", "3:13", "range"},
    {"FloatText", "optim: {lr: fast}\n", "3:13", "expected a number"},
    {"LearningRateZero", "optim: {lr: 0}\n", "3:13", "must be greater than 0"},
    {"BetaOne", "optim: {betas: [0.9, 1.0]}\n", "3:22", "optim.betas[1]: must be at least 0 and less than 1"},
    {"BetaAlone", "optim: {betas: [0.9]}\n", "3:16", "needs two numbers"},
    {"BetasScalar", "optim: {betas: 0.9}\n", "3:16", "expected a list"},
    {"EnumUnknown", "optim: {schedule: cosin}\n", "3:19", "unknown value 'cosin' (did you mean cosine?)"},
    {"TimeWithSpaces", "train: {hang_timeout: 10 minutes}\n", "3:23", "expected a time"},
    {"WarmupBeyondWhole", "optim: {warmup: 120%}\n", "3:17", "between 0% and 100%"},
    {"SectionAsValue", "optim: adamw\n", "3:8", "expected a section"},
    {"NullWhereNumber", "train: {steps: }\n", "3:16", "expected a single value, found nothing"},
    {"SetBadValue", "", "--set #2", "optim.lr: expected a number", {"train.steps=5", "optim.lr=abc"}},
    {"ReferenceCycle", "train: {steps: \"${eval.every}\"}\neval: {every: \"${train.steps}\"}\n", "3:16",
     "refers to itself"},
    {"ReferenceUnknown", "train: {steps: \"${train.step}\"}\n", "3:16",
     "there is no key train.step (did you mean train.steps?)"},
    {"EnvironmentMissing", "train: {steps: \"${env:CONCLAVE_NOT_SET}\"}\n", "3:16", "CONCLAVE_NOT_SET is not set"},
    {"NoDecayKind", "optim: {no_decay: [norms]}\n", "3:20", "unknown kind of parameter 'norms' (did you mean norm?)"},
    {"NoChunks", "parallel: {chunks: 0}\n", "3:20", "must be at least 1"},
    {"ExecutorTypo", "parallel: {executor: interleave}\n", "3:22", "interleaved"},
    {"ProgressTypo", "comm: {progress: threads}\n", "3:18", "thread"},
    {"ProfileWords", "train: {profile: yes please}\n", "3:18", "is no range of steps; write 10..12"},
    {"ProfileBackwards", "train: {profile: 12..10}\n", "3:18", "is no range of steps"},
    {"ProfileFromZero", "train: {profile: 0..2}\n", "3:18", "is no range of steps"},
    {"ResumeTypo", "checkpoint: {resume: atuo}\n", "3:22", "unknown value 'atuo' (did you mean auto?)"},
    {"DeviceTypo", "train: {device: gpu}\n", "3:17", "unknown value 'gpu'"},
};

const std::vector<BadConfig> kUnbuilt = {
    {"ContextParallel", "parallel: {cp: 2}\n", "3:16", "not built yet: context parallelism"},
    {"PipelineParallel", "parallel: {pp: 2}\n", "3:16", "not built yet: pipeline parallelism"},
    {"ZeroTwo", "parallel: {zero: 2}\n", "3:18", "must be 0 or 1"},
    {"ExpertSets", "moe: {sets: [{num_experts: 8, expert_hidden_size: 8, top_k: 2}]}\n", "3:13",
     "not built yet: expert sets"},
    {"TopKWithoutAnEnd", "moe: {top_k: [{until: 100, k: 6}]}\n", "3:14", "the last entry must have no `until`"},
    {"TopKWithoutAStep", "moe: {top_k: [{k: 6}, {k: 1}]}\n", "3:15", "every entry but the last needs an `until`"},
    {"TopKBackwards", "moe: {top_k: [{until: 9, k: 6}, {until: 8, k: 2}, {k: 1}]}\n", "3:33",
     "later than the one before"},
    {"TopKBeyondExperts", "moe: {top_k: [{until: 9, k: 9}, {k: 1}]}\n", "3:14", "9 experts for each token"},
    {"TopKOfAHash", "moe: {router: {type: hash}, top_k: [{until: 9, k: 6}, {k: 1}]}\n", "3:36",
     "as many experts for each token in every step"},
    {"BranchTypo", "moe: {branch: paralel}\n", "3:15", "unknown value 'paralel' (did you mean parallel?)"},
    {"BranchGateOfNothing", "moe: {branch_gate: softmax}\n", "3:20", "set moe.branch: parallel"},
    {"BranchGateOfArctic", "moe: {branch: residual, branch_gate: softmax}\n", "3:38", "set moe.branch: parallel"},
    {"MeanOfNothing", "moe: {shared_merge: mean}\n", "3:21", "there is no shared expert"},
    {"MeanOfAnyNumber", "moe: {num_shared_experts: 1, shared_merge: mean, router: {type: relu}}\n", "3:44",
     "the same number of experts for each token"},
    {"RenormalisedHome",
     "moe: {router: {type: zero_compute, zero_compute: {copy: 1}}, capacity: {factor: 1.5, renormalize: true}}\n",
     "3:", "what is added at home"},
    {"FallbackOfNothing", "moe: {fallback: {hidden_size: 8}}\n", "3:17", "training refuses nothing without a capacity"},
    {"FallbackAndRenormalise", "moe: {fallback: {hidden_size: 8}, capacity: {factor: 1, renormalize: true}}\n", "3:17",
     "renormalising gives them to others"},
    {"NothingBesides", "moe: {router: {type: zero_compute, zero_compute: {zero: 0, copy: 0, constant: 0}}}\n", "3:50",
     "there is no zero-compute expert"},
    {"ContextAndJitter", "moe: {router: {context: true, jitter: 0.1}}\n", "3:25", "set jitter 0"},
    {"BaseOfTwo", "moe: {router: {type: base}}\n", "3:22", "set top_k 1 and granularity 1"},
    {"BaseWithCapacity", "moe: {top_k: 1, router: {type: base}, capacity: {factor: 2}}\n", "3:58", "remove this"},
    {"BaseOptionsOfAnother", "moe: {router: {base: {epsilon: 0.1}}}\n", "3:22", "options of type base"},
    {"BaseWithASwitchLoss", "moe: {top_k: 1, router: {type: base}, balance: {losses: [{type: switch, coef: 0.1}]}}\n",
     "3:65", "needs scores that it may even out"},
    {"DefaultMoeForgetsAll", "moe: {router: {type: default_moe, default_moe: {decay: 1}}}\n", "3:56", "less than 1"},
    {"DefaultMoeAndSigmoid", "moe: {router: {type: default_moe, score: sigmoid}}\n", "3:42",
     "means nothing to moe.router.type default_moe"},
    {"DefaultMoeInAMean", "moe: {num_shared_experts: 1, shared_merge: mean, router: {type: default_moe}}\n", "3:44",
     "some stay at home"},
    {"DropoutOfAll", "moe: {experts: {dropout: 1}}\n", "3:26", "less than 1"},
    {"DropoutInBf16", "moe: {experts: {dropout: 0.1}}\ntrain: {precision: bf16}\n", "3:26",
     "not built yet: dropout in experts"},
    {"GroupedOfOne", "moe: {top_k: 1, router: {type: dense_backprop_group}}\n", "3:14", "so that nothing stands in"},
    {"GroupedWithCapacity", "moe: {router: {type: dense_backprop_group}, capacity: {factor: 2}}\n", "3:64",
     "a capacity refuses some; set null"},
    {"GroupedAndNormalised", "moe: {router: {type: dense_backprop_group, norm_topk_prob: true}}\n", "3:60",
     "means nothing to moe.router.type dense_backprop_group"},
    {"RecurrentOfNoSize", "moe: {router: {recurrent: {}}}\n", "3:27", "hidden_size: required"},
    {"RecurrentAndContext", "moe: {router: {recurrent: {hidden_size: 8}, context: true}}\n", "3:27",
     "set context false"},
    {"RecurrentAndJitter", "moe: {router: {recurrent: {hidden_size: 8}, jitter: 0.1}}\n", "3:27", "set jitter 0"},
    {"RecurrentForAll", "moe: {router: {recurrent: {hidden_size: 8}, share: model}}\n", "3:27", "set share layer"},
    {"RecurrentHash", "moe: {router: {type: hash, recurrent: {hidden_size: 8}}}\n", "3:39",
     "means nothing to moe.router.type hash"},
    {"AutonomyOfExperts", "moe: {router: {type: autonomy_of_experts}}\n", "3:22",
     "not built yet: 'autonomy_of_experts'"},
    {"Replay", "moe: {router: {replay: ids}}\n", "3:24", "not built yet: replaying"},
    {"MupOfARouterWithoutAFactor",
     "!model: {vocab_size: 9, hidden_size: 64, num_layers: 2, num_attention_heads: 4, init: mup}\n"
     "moe: {router: {type: zero_compute}}\n" +
         std::string(kData),
     "1:86", "mup knows no factor"},
    {"MupOfARouterWithAState",
     "!model: {vocab_size: 9, hidden_size: 64, num_layers: 2, num_attention_heads: 4, init: mup}\n"
     "moe: {router: {recurrent: {hidden_size: 8}}}\n" +
         std::string(kData),
     "1:86", "mup knows no scale for a router with a state"},
    {"MupBase",
     "!model: {vocab_size: 9, hidden_size: 64, num_layers: 2, num_attention_heads: 4, mup: {base_width: 0}}\n" +
         std::string(kData),
     "1:98", "model.mup.base_width"},
    {"InitFromNothing",
     "!model: {vocab_size: 9, hidden_size: 64, num_layers: 2, num_attention_heads: 4, init_from: []}\n" +
         std::string(kData),
     "1:91", "names no run"},
    {"Fp16", "train: {precision: fp16}\n", "3:20", "not built yet: 'fp16'"},
    {"Cuda", "train: {device: cuda}\n", "3:17", "use train.device: cpu"},
    {"Device", "train: {device: gpu}\n", "3:17", "auto, cpu, cuda"},
    {"DistillFromNothing", "train: {distill: {weight: 0.5}}\n", "3:18", "teacher"},
    {"DistillWeight", "train: {distill: {teacher: x, weight: 2}}\n", "3:39", "train.distill.weight"},
    {"DistillCold", "train: {distill: {teacher: x, temperature: 0}}\n", "3:44", "train.distill.temperature"},
    {"AsyncCheckpoint", "checkpoint: {async: true}\n", "3:21", "not built yet: saving while training"},
    {"Tensorboard", "metrics: {tensorboard: true}\n", "3:24", "not built yet: TensorBoard"},
    {"Recompute", "memory: {recompute: ful}\n", "3:21", "full"},
    {"Ucc", "comm: {backend: ucc}\n", "3:17", "not built yet: 'ucc'"},
    {"NcclForTheCpu", "train: {device: cpu}\ncomm: {backend: nccl}\n", "4:17",
     "train.device is cpu; use comm.backend: mpi"},
    {"MpiForAGpu", "train: {device: cuda}\ncomm: {backend: mpi}\n", "4:17", "use comm.backend: auto or nccl"},
    {"Optimizer", "optim: {type: muon}\n", "3:15", "not built yet: 'muon'"},
};

std::string model(const std::string& more) {
  return "!model: {vocab_size: 512, hidden_size: 64, num_layers: 2, " + more + "}\n" + kData;
}

const std::vector<BadConfig> kRelations = {
    {"UnknownRouter", "moe: {router: {type: top_k}}\n", "3:22", "topk"},
    {"Groups", "moe: {router: {n_group: 3, topk_group: 2}}\n", "3:25", "8 experts do not make 3 equal groups"},
    {"GroupsOfALayer", "moe: {num_experts: [8, 12], layers: [1, 1], router: {n_group: 8, topk_group: 4}}\n", "3:63",
     "12 experts do not make 8 equal groups"},
    {"LoadOfGroups",
     "moe: {router: {type: noisy_topk, n_group: 4, topk_group: 2}, balance: {losses: [{type: load}]}}\n", "3:88",
     "knows neither groups of experts nor a bias"},
    {"NoiseThatNeverLearns", "moe: {top_k: 1, router: {type: noisy_topk}, balance: {losses: [{type: importance}]}}\n",
     "3:14", "learns from a load or switch loss only"},
    {"CapacityOfExpertChoice", "moe: {router: {type: expert_choice}, capacity: {factor: 1}}\n", "3:57",
     "take k * T / E tokens each"},
    {"TooFewGroups", "moe: {top_k: 4, router: {n_group: 4, topk_group: 1}}\n", "3:50",
     "1 groups of 2 experts are too few for 4 experts of a token"},
    {"OptionsOfAnotherRouter", "moe: {router: {hash: {table: random}}}\n", "3:22",
     "options of type hash, but moe.router.type is topk"},
    {"ScoresWithoutMeaning", "moe: {router: {type: relu, norm_topk_prob: true}}\n", "3:44",
     "means nothing to moe.router.type relu"},
    {"ClustersOfNothing", "moe: {router: {type: hash, hash: {table: clustered}}}\n", "3:42",
     "table clustered groups token ids by their embeddings; name a run"},
    {"EmbeddingsOfABalancedTable", "moe: {router: {type: hash, hash: {table: balanced, embeddings: runs/a}}}\n", "3:64",
     "tables clustered and dispersed read a run's embeddings, table balanced does not"},
    {"EmbeddingsOfNoRun", "moe: {router: {type: hash, hash: {table: dispersed, embeddings: \"\"}}}\n", "3:65",
     "names no run"},
    {"HashOfNoTokens", "moe: {router: {type: hash, hash: {table: balanced, sample: 0}}}\n", "3:60",
     "must be at least 1"},
    {"HashTableTypo", "moe: {router: {type: hash, hash: {table: balance}}}\n", "3:42", "did you mean balanced?"},
    {"NoiseTypo", "moe: {router: {noise: gumble}}\n", "3:23", "unknown value 'gumble' (did you mean gumbel?)"},
    {"GumbelOfTwo", "moe: {top_k: 2, router: {noise: gumbel}}\n", "3:33",
     "gumbel draws the one expert of a token, and moe.top_k takes 2"},
    {"GumbelOfASigmoid", "moe: {top_k: 1, router: {noise: gumbel, score: sigmoid}}\n", "3:33",
     "gumbel draws from a softmax of the logits"},
    {"GumbelSecondInGroups", "moe: {router: {second: gumbel, n_group: 2, topk_group: 2}}\n", "3:24",
     "gumbel draws from all experts"},
    {"GumbelWithABias", "moe: {router: {second: gumbel}, balance: {bias: {update_rate: 0.1}}}\n", "3:24",
     "gumbel draws from logits without a bias"},
    {"GumbelSecondOfFour", "moe: {top_k: 4, router: {second: gumbel}}\n", "3:34",
     "a random second expert needs 2 experts for each token, not 4"},
    {"GumbelOfAnotherRouter", "moe: {router: {type: relu, noise: gumbel}}\n", "3:35",
     "means nothing to moe.router.type relu"},
    {"GumbelInBf16", "moe: {top_k: 1, router: {noise: gumbel}}\ntrain: {precision: bf16}\n", "3:33",
     "not built yet: noise in the choice"},
    {"DevicesOfNothing", "moe: {capacity: {factor: 1, policy: device}}\n", "3:37",
     "needs moe.capacity.devices: how many groups the experts make"},
    {"DevicesOfAnotherPolicy", "moe: {capacity: {factor: 1, devices: 2}}\n", "3:38",
     "groups of experts of policy device, but moe.capacity.policy is position"},
    {"DevicesOfUnequalSize", "moe: {capacity: {factor: 1, policy: device, devices: 3}}\n", "3:54",
     "8 experts do not make 3 equal groups"},
    {"BiasWithoutChoice", "moe: {router: {type: hash}, balance: {bias: {update_rate: 0.001}}}\n", "3:59",
     "does not choose by biased scores"},
    {"LossOfAnotherRouter", "moe: {balance: {losses: [{type: l1}]}}\n", "3:33", "of a relu router"},
    {"RandomSecond", "moe: {top_k: 4, router: {second: random}}\n", "3:34", "needs 2 experts for each token, not 4"},
    {"WorldTooSmall", "parallel: {dp: 4}\n", "3:16", "takes 4 ranks, but there are 2; leave parallel.dp out", {}, 2},
    {"ExpertsOverRanks",
     "moe: {num_experts: 64}\nparallel: {ep: 12}\ntrain: {global_batch_size: 24}\n",
     "4:16",
     "64 experts cannot be split over ep=12 (64 % 12 = 4); divisors that fit 24 ranks: 1 2 4 8",
     {},
     24},
    {"ExpertRanksDoNotDivide",
     "parallel: {ep: 4}\ntrain: {global_batch_size: 6}\n",
     "3:16",
     "ep 4 x etp 1 does not divide the 6 ranks of dp x cp x tp; ep may be 1 2 3 6",
     {},
     6},
    {"LocalDispatchOverRanks", "moe: {dispatch: {type: local}}\nparallel: {ep: 2}\n", "3:24",
     "ep is 2; use auto or alltoall"},
    {"BatchOverRanks", "train: {global_batch_size: 8, micro_batch_size: 3}\n", "3:28",
     "8 sequences cannot be split over dp 1 x micro_batch_size 3 (8 % 3 = 2)"},
    {"ChunksOfNothing",
     "!" + std::string(kModel) +
         "data: {train: [{name: a, path: a}], seq_len: 8}\nparallel: {executor: chunked, chunks: 9}\n",
     "3:39", "9 chunks of a micro-batch of 8 tokens"},
    {"CanonicalTree", "train: {global_batch_size: 12}\nparallel: {reduction: canonical}\n", "3:28",
     "not 12; nearest batches: 8 and 16"},
    {"CanonicalRows",
     "!" + std::string(kModel) + "data: {train: [{name: a, path: a}], seq_len: 8}\nparallel: {reduction: canonical}\n",
     "2:46", "at least 16 tokens of a micro-batch on each rank, not 8"},
    {"CanonicalRowsOverTensorRanks",
     "!" + std::string(kModel) +
         "data: {train: [{name: a, path: a}], seq_len: 32}\nparallel: {reduction: canonical, tp: 4}\n",
     "2:46", "at least 16 tokens of a micro-batch on each rank, not 8"},
    {"HeadsOverTensorRanks", "parallel: {tp: 3}\n", "3:16",
     "4 attention heads cannot be shared by tp 3 ranks (4 % 3 = 1)"},
    {"KvHeadsOverTensorRanks", model("num_attention_heads: 4, num_key_value_heads: 2") + "parallel: {tp: 4}\n", "3:16",
     "2 key/value heads cannot be shared by tp 4 ranks"},
    {"TokensOverTensorRanks",
     "!" + std::string(kModel) + "data: {train: [{name: a, path: a}], seq_len: 31}\nparallel: {tp: 2}\n", "3:16",
     "31 tokens of a micro-batch cannot be shared by tp 2 ranks"},
    {"VocabularyOverTensorRanks",
     "!model: {vocab_size: 3, hidden_size: 64, num_layers: 2, num_attention_heads: 4}\n" + std::string(kData) +
         "parallel: {tp: 4}\n",
     "3:16", "a vocabulary of 3 leaves ranks of tp 4 without a token"},
    {"SharedWidthOverTensorRanks", "moe: {num_shared_experts: 1, shared_hidden_size: 30}\nparallel: {tp: 4}\n", "4:16",
     "the width 30 of layer 0 cannot be shared by tp 4 ranks (30 % 4 = 2)"},
    {"ExpertWidthOverTensorRanks", "moe: {expert_hidden_size: 30}\nparallel: {tp: 4, etp: 4}\n", "4:24",
     "the width 30 of layer 0 cannot be shared by etp 4 ranks (30 % 4 = 2)"},
    {"OneOfExpertWidthsOverTensorRanks",
     "moe: {num_experts: 4, expert_hidden_size: [32, 32, 30, 32]}\nparallel: {tp: 4, etp: 4}\n", "4:24",
     "the width 30 of layer 0 cannot be shared by etp 4 ranks (30 % 4 = 2)"},
    {"ExpertWidthsLength", "moe: {expert_hidden_size: [32, 64]}\n", "3:27",
     "has 2 widths, but a layer has 8 experts; give one for each, or one number for all"},
    {"ExpertWidthsOfAPyramid", "moe: {num_experts: [2, 4], expert_hidden_size: [32, 64]}\n", "3:48",
     "has 2 widths, but a layer has 4 experts"},
    {"ExpertWidthsNone", "moe: {expert_hidden_size: []}\n", "3:27", "has 0 widths, but a layer has 8 experts"},
    {"ExpertWidthsAndGranularity", "moe: {granularity: 2, num_experts: 2, top_k: 1, expert_hidden_size: [32, 64]}\n",
     "3:20", "cuts experts of one width"},
    {"ExpertWidthsAndASharedExpert", "moe: {num_experts: 2, num_shared_experts: 1, expert_hidden_size: [32, 64]}\n",
     "3:66", "has no one width that a shared expert could take; set moe.shared_hidden_size"},
    {"ExpertWidthZero", "moe: {num_experts: 2, expert_hidden_size: [32, 0]}\n", "3:48", "at least 1"},
    {"EntropyOfASigmoid",
     "moe: {top_k: 1, router: {type: sinkhorn}, balance: {losses: [{type: entropy, coef: 1e-3}]}}\n", "3:69",
     "sinkhorn with one expert for each token scores by a sigmoid"},
    {"ManyInFlight", "parallel: {executor: interleaved, micro_batches_in_flight: 9}\n", "3:60",
     "9 micro-batches in flight; use at most 8"},
    {"ManyChunks", "parallel: {executor: chunked, chunks: 65}\n", "3:39", "65 chunks; use at most 64"},
    {"RoundedGradientsOfCanonical", "parallel: {gradient_payload: bf16, reduction: canonical}\n", "3:30",
     "so the sums depend on dp, and reduction canonical promises that they do not"},
    {"RankOrder", "parallel: {rank_order: [tp, cp, dp]}\n", "3:24", "must name each of pp, dp, cp and tp once"},
    {"ExpertTensorBeyondTensor", "parallel: {tp: 2, etp: 4}\n", "3:24", "etp 4 does not divide tp 2"},
    {"HeadsOverKvHeads", model("num_attention_heads: 4, num_key_value_heads: 3"), "1:103",
     "4 attention heads cannot share 3 key/value heads"},
    {"HiddenOverHeads", model("num_attention_heads: 7"), "1:79", "hidden_size 64 is not a multiple of 7 heads"},
    {"OddHead", model("num_attention_heads: 4, head_dim: 17"), "1:92", "must be even, not 17"},
    {"SequenceTooLong", model("num_attention_heads: 4, max_seq_len: 64"), "2:46", "made for at most 64"},
    {"TooManyLayers",
     "!model: {vocab_size: 9, hidden_size: 64, num_layers: 1e9, num_attention_heads: 4}\n" + std::string(kData), "1:53",
     "at most 10000"},
    {"TopKBeyondExperts", "moe: {num_experts: 4, top_k: 5}\n", "3:30",
     "5 experts for each token, but a layer has only 4"},
    {"TopKBeyondOneLayer", "moe: {num_experts: [8, 2], top_k: 3}\n", "3:35", "a layer has only 2"},
    {"GranularityWidth", "moe: {granularity: 3}\n", "3:20", "width 256 cannot be cut into 3 equal parts (256 % 3 = 1)"},
    {"LayersLength", "moe: {layers: [1]}\n", "3:15", "has 1 entries, but the model has 2 layers"},
    {"LayersValues", "moe: {layers: [1, 2]}\n", "3:15", "must be 0 (dense) or 1"},
    {"ExpertsPerLayer", "moe: {num_experts: [8, 8], layers: [0, 1]}\n", "3:20", "has 2 entries, but 1 layers are MoE"},
    {"SharedWidthAlone", "moe: {shared_hidden_size: 64}\n", "3:27", "there is no shared expert"},
    {"SharedGateAlone", "moe: {shared_gate: true}\n", "3:20", "no shared expert to gate"},
    {"PayloadOfShared", "moe: {dispatch: {type: shared, payload: bf16}}\n", "3:41",
     "is the format of rows between hosts, and dispatch shared sends none there; use payload same, or type auto"},
    {"PayloadOfLocal", "moe: {dispatch: {payload: bf16, type: local}}\n", "3:27",
     "is the format of rows between hosts, and dispatch local sends none there"},
    {"CompressionOfManyDirections", "moe: {dispatch: {compression: {dimensions: 65}}}\n", "3:44",
     "a rotation of rows of 64 numbers has 64 directions"},
    {"CompressionWithDropout", "moe: {dispatch: {compression: {hashes: 2}}, experts: {dropout: 0.1}}\n", "3:31",
     "a row of several tokens has no token to draw dropout by"},
    {"CompressionOfDefaultMoe", "moe: {router: {type: default_moe}, dispatch: {compression: {hashes: 2}}}\n", "3:60",
     "keeps means of what experts give single tokens"},
    {"CapacityZero", "moe: {capacity: {factor: 0}}\n", "3:26", "null takes every token (dropless)"},
    {"EvalCapacityNegative", "moe: {capacity: {eval_factor: -1}}\n", "3:31", "must be greater than 0"},
    {"SequenceLevel", "moe: {balance: {losses: [{level: sequence, convention: gshard}]}}\n", "3:34",
     "'gshard' is defined for level micro only"},
    {"ModelScope", "moe: {balance: {losses: [{scope: model}]}}\n", "3:34", "needs convention huggingface"},
    {"MinLrAboveLr", "optim: {lr: 1e-4, min_lr: 1e-3}\n", "3:27", "min_lr 0.001 is greater than lr 0.0001"},
    {"WarmupTooLong", "optim: {warmup: 200}\ntrain: {steps: 100}\n", "3:17", "warm-up of 200 steps in a run of 100"},
    {"DecayTooLong", "optim: {warmup: 50, decay: 60}\ntrain: {steps: 100}\n", "3:28", "does not fit into 100 steps"},
    {"KeepOne", "checkpoint: {keep_last: 1}\n", "3:25", "at least 2"},
    {"SameNameTwice",
     "!" + std::string(kModel) + "data: {seq_len: 64, train: [{name: a, path: a}, {name: a, path: b}]}\n", "2:56",
     "'a' names two sources"},
};

std::string case_name(const testing::TestParamInfo<BadConfig>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Syntax, BadConfigs, testing::ValuesIn(kSyntax), case_name);
INSTANTIATE_TEST_SUITE_P(Keys, BadConfigs, testing::ValuesIn(kKeys), case_name);
INSTANTIATE_TEST_SUITE_P(Values, BadConfigs, testing::ValuesIn(kValues), case_name);
INSTANTIATE_TEST_SUITE_P(Unbuilt, BadConfigs, testing::ValuesIn(kUnbuilt), case_name);
INSTANTIATE_TEST_SUITE_P(Relations, BadConfigs, testing::ValuesIn(kRelations), case_name);

}  // namespace
}  // namespace conclave::train
