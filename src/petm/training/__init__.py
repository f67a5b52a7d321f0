"""How a second opinion is trained: error set, adversarial examples, teacher, distillation, recipes."""
